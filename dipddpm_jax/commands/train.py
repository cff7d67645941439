"""Training a diffusion model: what the resumable loop (`loop.run_to_end`) asks of it, and the pictures it leaves."""
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import PyTree

from dipddpm_jax import checkpoints, devices, plots
from dipddpm_jax.commands import builders, sizes
from dipddpm_jax.commands.event_files import check_installed, event_file
from dipddpm_jax.commands.labels import default_labels
from dipddpm_jax.commands.loop import ChunkReport, Pace, Row, newest_items, run_to_end
from dipddpm_jax.commands.model import Model, NotFinite, draw
from dipddpm_jax.commands.starts import starting_variables
from dipddpm_jax.commands.training_data import TrainingData, load_training_data
from dipddpm_jax.commands.workdir import claimed_workdir
from dipddpm_jax.config import ranges, saved
from dipddpm_jax.config.diffusion import RunOptions, TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.diffusion import training
from dipddpm_jax.diffusion.few_steps import TEACHER
from dipddpm_jax.diffusion.training import TrainState
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import complete_file


def make_held_out_loss(
    loss_fn: Callable, num_steps: int, pixels: training.Pixels, held: TrainingData, batch: int
) -> Callable[[PyTree, PyTree], Any]:
    """loss(params, collections) on held-out pictures, with the same times and noise every time."""
    count = max(len(held.held_images) // batch, 1)
    batch = min(batch, len(held.held_images))
    images = held.held_images[: count * batch].reshape(count, batch, *held.held_images.shape[1:])
    labels = held.held_labels
    labels = None if labels is None else labels[: count * batch].reshape(count, batch, *labels.shape[1:])

    @jax.jit
    def mean_loss(params, collections, images, labels):
        def one(key, images, labels):
            t, eps, labels = training.random_draws(key, num_steps, images, labels, 0.0)
            return loss_fn(params, collections, images, labels, t, eps, key, False)[0]

        def body(total, i):
            part = None if labels is None else labels[i]
            return total + one(jax.random.key(i), pixels.encode(images[i]), part), None

        return jax.lax.scan(body, jnp.float32(0), jnp.arange(count))[0] / count

    return lambda params, collections: mean_loss(params, collections, images, labels)


def checkpoint_items(state: TrainState) -> dict[str, PyTree]:
    """A state as a checkpoint holds it: what sampling needs, and the rest."""
    collections = dict(state.collections)
    teacher = {TEACHER: collections.pop(TEACHER)} if TEACHER in collections else {}
    weights = {"params": state.ema_params, "collections": collections}
    return {"weights": weights, "train": state._replace(ema_params={}, collections=teacher)._asdict()}


def state_of(items: dict[str, PyTree]) -> TrainState:
    """The inverse of `checkpoint_items`."""
    weights, rest = items["weights"], items["train"]
    return TrainState(**{**rest, "ema_params": weights["params"],
                         "collections": {**weights["collections"], **rest["collections"]}})


def make_program(
    config: TrainConfig, network: nn.Module, mesh: Mesh, shardings: PyTree, length: int
) -> tuple[Callable, Callable]:
    """(`length` steps as `training.make_chunk` makes them, the loss) of a run whose batches a mesh of devices shares.

    `shardings` say where the arrays of its state lie. The devices need not be there: a program may be compiled for
    others (ahead of time).
    """
    schedule, across = builders.make_schedule(config.schedule), devices.batch_sharding(mesh)
    loss = builders.make_run_loss(config, network)
    step = training.make_train_step(
        loss, schedule.num_steps, builders.make_optimizer(config.optimizer, config.steps),
        ema_decay=config.optimizer.ema_decay, drop_rate=config.label_drop,
        augment=builders.make_augment(config))
    chunk = training.make_chunk(
        step, config.batch_size, length, training.Pixels(config.pixel_mean, config.pixel_std).encode,
        place=lambda batch: jax.lax.with_sharding_constraint(batch, across),
        shardings=(shardings, devices.replicated(mesh)))
    return chunk, loss


class Training:
    """A `loop.Job`: one run, taken up where its newest checkpoint ends."""

    def __init__(self, config: TrainConfig, run: RunOptions, workdir: Path, given: TrainingData,
                 start: PyTree | None = None):
        self.config, self.run, self.workdir, self.data, self.start = config, run, workdir, given, start
        self.network = builders.make_network(config.network, given.facts, config.schedule.num_steps)
        self.mesh = devices.make_mesh(run.devices, config.batch_size)
        everywhere = devices.replicated(self.mesh)
        self.state, shardings = self._begun()
        self.step, self.total = int(self.state.step), config.steps
        self.chunk, loss = make_program(config, self.network, self.mesh, shardings, run.chunk)
        pixels = training.Pixels(config.pixel_mean, config.pixel_std)
        self.held_out = make_held_out_loss(loss, config.schedule.num_steps, pixels, given, config.batch_size)
        self.images = devices.place(given.images, everywhere)
        self.labels = None if given.labels is None else devices.place(given.labels, everywhere)

    def _begun(self) -> tuple[TrainState, PyTree]:
        """(the state of the newest checkpoint or of step 0, where its arrays lie)."""
        state = builders.make_state(self.config, self.network, self.data.facts)
        if self.start is not None:
            others = dict(self.start)
            params = others.pop("params")
            state = state._replace(params=params, collections=others, ema_params=jax.tree.map(jnp.copy, params))
        if self.config.few_step is not None:  # a copy, since the state is donated
            teacher = jax.tree.map(jnp.copy, {"params": state.params, **state.collections})
            state = state._replace(collections={**state.collections, TEACHER: teacher})
        shardings = devices.state_shardings(self.mesh, state, self.run.shard_state)
        template = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)
        items = newest_items(self.workdir, checkpoint_items(template))
        return devices.place(state, shardings) if items is None else state_of(items), shardings

    def advance(self, count: int) -> tuple[int, int, training.Metrics]:
        """Up to `run.chunk` steps in one device call."""
        self.state, metrics = self.chunk(self.state, self.images, self.labels, jnp.int32(count))
        self.step += count
        return self.step, count, metrics

    def report(self, chunk: tuple[int, int, training.Metrics], seconds: float) -> ChunkReport:
        """Mean loss and gradient norm of a chunk; a problem when one of them is not finite."""
        step, count, metrics = chunk
        losses, norms = (np.asarray(m.addressable_data(0))[:count] for m in metrics)
        images_per_s = count * self.config.batch_size / seconds
        row = {"step": step, "loss": float(losses.mean()), "grad_norm": float(norms.mean()),
               "images_per_s": round(images_per_s, 1)}
        text, bad = f"loss {row['loss']:.4f}, {images_per_s:.0f} images/s", ~np.isfinite(losses + norms)
        if not bad.any():
            return ChunkReport([row], text)
        first = step - count + 1 + int(bad.argmax())
        return ChunkReport([], text, f"the loss or its gradient is not finite in step {first} of {self.workdir}: a "
                                     "lower --optimizer.learning-rate or --optimizer.clip-norm 1 usually helps",
                           first - 1)  # a step that is not finite, and all after it, change nothing

    def items(self) -> dict[str, PyTree]:
        """The whole state."""
        return checkpoint_items(self.state)

    def score(self) -> Row:
        """The loss of the averaged parameters on held-out pictures, if there are any."""
        if not len(self.data.held_images):
            return {}
        return {"held_out_loss": float(self.held_out(self.state.ema_params, self.state.collections))}

    def show(self) -> None:
        """samples/step_N.png every `sample_every` steps."""
        every = self.run.sample_every
        if every and 0 < self.step < self.total and self.step % every == 0:
            self.draw_samples(self.workdir / "samples" / f"step_{self.step:06d}.png")

    def draw_samples(self, path: Path) -> None:
        """A grid of pictures from the averaged parameters, with labels in columns if the model knows any."""
        part = self.items()["weights"]
        weights = devices.to_host({"params": part["params"], **part["collections"]}, self.mesh)
        if jax.process_index():
            return
        model, shown = Model(self.config, self.data.facts, self.network, weights), self.data.examples()
        columns = min(len(self.data.facts.label_names), 10) or 8
        labels = default_labels(self.data.facts, 8 * columns, shown.held_labels)
        try:
            drawn = draw(model, self.config.sampler, 8 * columns, 0, labels, pictures=shown.held_images)
        except NotFinite as error:  # the training is well, and later pictures may be
            return print(f"no {path.name}: {error}", file=sys.stderr)
        with complete_file(path, parents=True) as part:
            plots.save_grid(drawn.images, part, columns)

    def finish(self, rows: list[Row]) -> Path:
        """The last pictures: samples.png, which is returned, and the curves of the loss."""
        picture = self.workdir / "samples.png"
        self.draw_samples(picture)
        if jax.process_index() == 0:
            curves = {"training": [r.get("loss") for r in rows], "held out": [r.get("held_out_loss") for r in rows]}
            with complete_file(self.workdir / "loss.png") as part:
                plots.save_curves([r["step"] for r in rows], curves, part, y_label="mean squared error")
        return picture


def train_model(config: TrainConfig, run: RunOptions, preset: str) -> tuple[Path, Path]:
    """Trains, or goes on with, a run: (its directory, its picture of samples). Raises UserError and Stopped."""
    ranges.check(config, run)
    devices.set_up(run)
    if config.image_size:
        sizes.check_training(config, Facts((config.image_size, config.image_size, 1)))
    given = load_training_data(_of_saved_size(config, run), run.data_dir)
    if not len(given.held_images) and jax.process_index() == 0:
        print(f"{config.data} has no test pictures: no held-out loss is measured, and the two newest checkpoints stay",
              file=sys.stderr)
    return train_on(given, config, run, preset)


def _of_saved_size(config: TrainConfig, run: RunOptions) -> TrainConfig:
    """The configuration with the size that a resumed run's pictures had: folders without --image-size meant 32 once."""
    if not run.resume or config.image_size is not None:
        return config
    height, width, _ = saved.load((run.workdir or saved.newest_run()) / "config.json")[2].image_shape
    return replace(config, image_size=height) if height == width else config


def train_on(given: TrainingData, config: TrainConfig, run: RunOptions, preset: str, again: str | None = None
             ) -> tuple[Path, Path]:
    """The same on these pictures; `again` is what goes on with the run, by default a command line."""
    builders.check_names(config)
    if (few := config.few_step) is not None and few.guidance and not given.facts.label_names:
        config = replace(config, few_step=replace(few, guidance=0.0))  # as the teacher's sampler leaves it out
    if run.tensorboard:
        check_installed()
    if jax.process_index() == 0:
        for line in builders.remarks(builders.make_schedule(config.schedule), config.target):
            print(line, file=sys.stderr)
    sizes.check_training(config, given.facts)
    network = builders.make_network(config.network, given.facts, config.schedule.num_steps)  # these fail before
    devices.make_mesh(run.devices, config.batch_size)  # anything is written
    start = None if run.resume else starting_variables(config, network, given.facts)
    workdir = saved.newest_run() if run.resume and not run.workdir else run.workdir
    other = jax.process_index() and workdir  # process 0 owns the directory
    with nullcontext(workdir) if other else claimed_workdir(preset, workdir, run.resume) as workdir:
        if run.resume:
            _check_resumed(workdir, config, given.facts)
            if checkpoints.latest_step(workdir / "checkpoints") is None:  # it was stopped before the first
                start = starting_variables(config, network, given.facts)
        job = Training(config, run, workdir, given, start)
        if jax.process_index() == 0:
            saved.save(config, preset, given.facts, workdir / "config.json")
        pace = Pace(run.chunk, run.save_every, config.keep_every, run.sample_every, run.budget)
        again = again or f"python train.py --resume --workdir {shlex.quote(str(workdir))}"
        seen = event_file(workdir, job.step) if run.tensorboard and jax.process_index() == 0 else nullcontext()
        with seen as write:
            rows = run_to_end(job, workdir, pace, again, also=write)
        return workdir, job.finish(rows)


def _check_resumed(workdir: Path, config: TrainConfig, facts: Facts) -> None:
    _, _, before = saved.load(workdir / "config.json")
    if changed := saved.differences(before, facts):
        raise UserError(f"--resume with other data than {workdir} was trained on: {'; '.join(changed)}")
    step = checkpoints.latest_step(workdir / "checkpoints") or 0
    if config.steps < step:
        raise UserError(f"--steps {config.steps}: the run in {workdir} is at step {step} already; give at least that")
