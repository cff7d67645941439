"""The host loop of training: data, checkpoints, progress, pictures, and a clean end whatever happens."""
import time
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dipddpm_jax import checkpoints, data, devices, plots
from dipddpm_jax.commands import builders, sizes
from dipddpm_jax.commands.loop import Log, Stopped, stop_signals
from dipddpm_jax.commands.model import Model, cycled_labels, draw
from dipddpm_jax.commands.workdir import claimed_workdir
from dipddpm_jax.config import ranges, saved
from dipddpm_jax.config.diffusion import RunOptions, TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.data import iclevr
from dipddpm_jax.diffusion import training
from dipddpm_jax.errors import UserError

HELD_OUT = 512  # pictures of the test split that a held-out loss is measured on


class TrainingData(NamedTuple):
    """Pictures to train on and held-out ones, and what a model needs to know of them."""

    images: np.ndarray
    labels: np.ndarray | None
    held_images: np.ndarray
    held_labels: np.ndarray | None
    facts: Facts


def load_data(config: TrainConfig, data_dir: Path | None) -> TrainingData:
    """Raises UserError when the data set is not there or too small."""
    train = without(data.load(config.data, "train", data_dir, config.image_size), config.without)
    if config.batch_size > len(train.images):
        raise UserError(f"--batch-size {config.batch_size} is more than the {len(train.images)} pictures "
                        f"of {config.data}")
    try:
        held = data.load(config.data, "test", data_dir, config.image_size)
    except data.MissingSplit:  # a damaged split stops the run instead
        held = train._replace(images=train.images[:0])
    if not len(held.images):
        held = train  # nothing is held out: the loss of the last pictures stands in
    use_labels = config.labels and train.labels is not None
    labels, held_labels = (train.labels, held.labels) if use_labels else (None, None)
    facts = Facts(tuple(train.images.shape[1:]), tuple(train.label_names) if use_labels else (),
                  use_labels and train.labels.ndim == 2, len(train.images), crc32(np.ascontiguousarray(train.images)))
    pick = np.random.default_rng(0).permutation(len(held.images))[:HELD_OUT]
    held_labels = None if held_labels is None else held_labels[pick]
    return TrainingData(train.images, labels, held.images[pick], held_labels, facts)


def without(dataset: data.Dataset, groups: tuple[str, ...]) -> data.Dataset:
    """The pictures that show none of the groups of labels whole. Raises UserError for what a set does not know."""
    if not groups:
        return dataset
    if dataset.labels is None or dataset.labels.ndim != 2:
        raise UserError(f"--without: the pictures of {dataset.name} do not have several labels each")
    shown = np.zeros(len(dataset.labels), bool)
    for row in iclevr.rows("--without", groups, dataset.label_names):
        shown |= dataset.labels @ row == row.sum()
    if shown.all():
        raise UserError(f"--without leaves no pictures of {dataset.name}")
    return dataset._replace(images=dataset.images[~shown], labels=dataset.labels[~shown])


def held_out_loss(loss_fn: Any, schedule: Any, pixels: training.Pixels, held: TrainingData, batch: int) -> Any:
    """loss(params, collections) on held-out pictures, with the same times and noise every time."""
    count = max(len(held.held_images) // batch, 1)
    batch = min(batch, len(held.held_images))
    images = held.held_images[: count * batch].reshape(count, batch, *held.held_images.shape[1:])
    labels = held.held_labels
    labels = None if labels is None else labels[: count * batch].reshape(count, batch, *labels.shape[1:])

    @jax.jit
    def mean_loss(params, collections, images, labels):
        def one(key, images, labels):
            t, eps, labels = training.draw(key, schedule.num_steps, images, labels, 0.0)
            return loss_fn(params, collections, images, labels, t, eps, key, False)[0]

        def body(total, i):
            part = None if labels is None else labels[i]
            return total + one(jax.random.key(i), pixels.encode(images[i]), part), None

        return jax.lax.scan(body, jnp.float32(0), jnp.arange(count))[0] / count

    return lambda params, collections: mean_loss(params, collections, images, labels)


class Trainer:
    """One run: what is built once, then `train` to its end."""

    def __init__(self, config: TrainConfig, run: RunOptions, preset: str, workdir: Path, held: TrainingData):
        self.config, self.run, self.preset, self.workdir, self.data = config, run, preset, workdir, held
        self.first = jax.process_index() == 0
        self.schedule = builders.make_schedule(config.schedule)
        self.pixels = training.Pixels(config.pixel_mean, config.pixel_std)
        self.network = builders.make_network(config.network, held.facts, self.schedule.num_steps)
        self.mesh = devices.make_mesh(run.devices, config.batch_size)
        self.state = builders.make_state(config, self.network, held.facts)
        self.shardings = devices.state_shardings(self.mesh, self.state, run.shard_state)
        loss = training.make_loss(self.network, self.schedule, config.target, jnp.dtype(config.compute))
        step = training.make_train_step(loss, self.schedule.num_steps,
                                        builders.make_optimizer(config.optimizer, config.steps),
                                        config.optimizer.ema_decay, config.label_drop)
        across = devices.batch_sharding(self.mesh)
        self.chunk = training.make_chunk(
            step, config.batch_size, run.chunk, self.pixels.encode,
            place=lambda batch: jax.lax.with_sharding_constraint(batch, across),
            shardings=(self.shardings, devices.replicated(self.mesh)))
        self.held_out = held_out_loss(loss, self.schedule, self.pixels, held, config.batch_size)

    def restore(self) -> None:
        """The newest checkpoint; without one, the run starts at step 0."""
        directory = self.workdir / "checkpoints"
        if checkpoints.latest_step(directory) is not None:
            abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), self.state,
                                    self.shardings)
            self.state = checkpoints.restore(directory, abstract)
        else:
            self.state = devices.place(self.state, self.shardings)

    def train(self) -> Path:
        """To the last step. Raises Stopped on a signal, at the end of the budget, or when the loss is not finite."""
        config, run = self.config, self.run
        everywhere = devices.replicated(self.mesh)
        labels = self.data.labels
        images = devices.place(self.data.images, everywhere)
        labels = None if labels is None else devices.place(labels, everywhere)
        step, began = int(self.state.step), time.monotonic()
        self.reported = began
        self.log = Log(self.workdir / "metrics.jsonl", step) if self.first else None
        bar = tqdm(total=config.steps, initial=step, unit="step", disable=not self.first, dynamic_ncols=True)
        with checkpoints.open_manager(
                self.workdir / "checkpoints", keep_every=config.keep_every) as manager, stop_signals() as signals, bar:
            previous, kept = None, [run.save_every] + [config.keep_every] * bool(config.keep_every)
            while step < config.steps:
                # a chunk ends where a checkpoint or a picture is due, so that these fall on the same steps always
                marks = kept + [run.sample_every] * (run.sample_every > 0)
                count = min(run.chunk, config.steps - step, *(mark - step % mark for mark in marks))
                self.state, metrics = self.chunk(self.state, images, labels, jnp.int32(count))
                step += count
                if previous:  # the chunk before: reading the newest would make the device wait
                    self.report(bar, *previous)
                previous = (step, count, metrics)
                due = any(step % mark == 0 for mark in kept) or step == config.steps
                late = run.budget is not None and time.monotonic() - began > 60 * run.budget
                stop = devices.any_process(bool(signals) or late)
                if due or stop:
                    good = self.report(bar, *previous)
                    previous = None
                    self.save(manager, bar)
                    if not good:
                        raise Stopped(self.not_finite(), 1)
                if step < config.steps and run.sample_every and step % run.sample_every == 0:
                    self.draw_samples(self.workdir / "samples" / f"step_{step:06d}.png")
                if stop and step < config.steps:
                    checkpoints.wait(manager)
                    why = "stopped by a signal" if signals else f"the budget of {run.budget:g} minutes is used up"
                    raise Stopped(f"{why}; saved step {step}. Go on with: python train.py --resume --workdir "
                                  f"{self.workdir}", 128 + signals[0] if signals else 0)
            checkpoints.wait(manager)
        return self.finish()

    def report(self, bar: Any, step: int, count: int, metrics: training.Metrics) -> bool:
        """Shows and logs a chunk; False when a loss or gradient in it was not finite."""
        losses, norms = (np.asarray(m.addressable_data(0))[:count] for m in metrics)
        good = bool(np.isfinite(losses).all() and np.isfinite(norms).all())
        now, before = time.monotonic(), self.reported
        self.reported = now
        images_per_s = count * self.config.batch_size / (now - before)
        bar.update(count)
        bar.set_postfix_str(f"loss {losses.mean():.4f}, {images_per_s:.0f} images/s")
        if self.log:
            self.log.write({"step": step, "loss": float(losses.mean()), "grad_norm": float(norms.mean()),
                            "images_per_s": round(images_per_s, 1)})
        return good

    def save(self, manager: Any, bar: Any) -> None:
        """A checkpoint, judged by the held-out loss of the averaged parameters."""
        loss = float(self.held_out(self.state.ema_params, self.state.collections))
        if self.log:
            self.log.write({"step": int(self.state.step), "held_out_loss": loss})
        checkpoints.save(manager, self.state, loss)

    def not_finite(self) -> str:
        good = int(self.state.step)
        return (f"the loss or its gradient is not finite after step {good}; the state before it is saved in "
                f"{self.workdir}. A lower --optimizer.learning-rate or --optimizer.clip-norm 1 usually helps")

    def draw_samples(self, path: Path) -> None:
        """A grid of pictures from the averaged parameters, with labels in columns if the model knows any."""
        weights = devices.to_host({"params": self.state.ema_params, **self.state.collections}, self.mesh)
        if not self.first:
            return
        model = Model(self.config, self.data.facts, self.network, weights)
        columns = min(len(self.data.facts.label_names), 10) or 8
        labels = cycled_labels(self.data, 8 * columns)
        drawn = draw(model, self.config.sampler, 8 * columns, 0, labels, pictures=self.data.held_images)
        path.parent.mkdir(exist_ok=True)
        plots.save_grid(drawn.images, path, columns)

    def finish(self) -> Path:
        """The last pictures: samples and the loss curve."""
        picture = self.workdir / "samples.png"
        self.draw_samples(picture)
        if self.log:
            rows = self.log.rows
            curves = {"training": [r.get("loss") for r in rows], "held out": [r.get("held_out_loss") for r in rows]}
            plots.save_curves([r["step"] for r in rows], curves, self.workdir / "loss.png",
                              y_label="mean squared error")
        return picture


def train(config: TrainConfig, run: RunOptions, preset: str) -> tuple[Path, Path]:
    """Trains, or goes on with, a run: (its directory, its picture of samples). Raises UserError and Stopped."""
    ranges.check(config, run)
    devices.set_up(run)
    if config.image_size:
        sizes.check_training(config, Facts((config.image_size, config.image_size, 1)))
    held = load_data(config, run.data_dir)
    sizes.check_training(config, held.facts)
    builders.make_network(config.network, held.facts, config.schedule.num_steps)  # these fail before
    devices.make_mesh(run.devices, config.batch_size)  # anything is written
    workdir = saved.newest_run() if run.resume and not run.workdir else run.workdir
    if jax.process_index() and workdir:
        return workdir, _train_in(workdir, config, run, preset, held)
    with claimed_workdir(preset, workdir, run.resume) as workdir:
        return workdir, _train_in(workdir, config, run, preset, held)


def _train_in(workdir: Path, config: TrainConfig, run: RunOptions, preset: str, held: TrainingData) -> Path:
    if run.resume:
        _, _, facts = saved.load(workdir / "config.json")
        if changed := saved.differences(facts, held.facts):
            raise UserError(f"--resume with other data than {workdir} was trained on: {'; '.join(changed)}")
    if jax.process_index() == 0:
        saved.save(config, preset, held.facts, workdir / "config.json")
    trainer = Trainer(config, run, preset, workdir, held)
    trainer.restore()
    return trainer.train()
