"""Every way to restore with a diffusion prior, against the exact posterior: docs/results/together.md, together.jsonl.

The prior is a mixture of N(x_i, s^2 I) over the 4,500 training digits, whose denoiser and posteriors are in closed
form. Each method runs with that denoiser, so that what is missing is the method's fault, and then with a trained
network. A line of together.jsonl is one picture restored by one method; lines that are there already are not computed
again, so that the study may be completed in parts:

    python benchmarks/together.py --minutes 30
    python benchmarks/together.py --prior digits --study.calls 20 --minutes 30
"""
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import together_page  # noqa: E402
from benchmarks.places import REPO  # noqa: E402
from benchmarks.together_rows import SIDE, Shared, Study, Task, methods, suits, tasks, together, truths  # noqa: E402
from dipddpm_jax import data, devices, plots, records  # noqa: E402
from dipddpm_jax.commands.model import load_run  # noqa: E402
from dipddpm_jax.commands.starts import load_prior  # noqa: E402
from dipddpm_jax.diffusion import schedules, spacings  # noqa: E402
from dipddpm_jax.hybrids.prior import DiffusionPrior  # noqa: E402
from dipddpm_jax.inverse import exact, noises  # noqa: E402
from dipddpm_jax.inverse.measurement import Measurement, Restoration  # noqa: E402
from dipddpm_jax.judging.metrics import clipped_psnr  # noqa: E402
from dipddpm_jax.pretrained import PRIORS  # noqa: E402

RESULTS = REPO / "docs" / "results"
SHOWN = ("non-local means", "cross-fit", "truncated, ancestral", "PiGDM, matched", "half cross-fit, half PiGDM",
         "start: non-local means, rule", "start: cross-fit, rule")  # columns of the second picture
KEPT = REPO / "runs" / "together"  # cross-fits, which other denoisers' rows need too


def measure(task: Task, truth: np.ndarray, picture: int, seed: int) -> Measurement:
    """y = A x + noise, not clipped."""
    noise = noises.Gaussian(task.sigma / 255)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(100), picture), seed)
    seen = task.operator.forward(jnp.ones(truth.shape)) != 0
    return Measurement(seen * noise.draw(key, task.operator.forward(jnp.asarray(truth))), task.operator, noise)


def scored(truth: np.ndarray, measurement: Measurement, restored: Any, bound: exact.Posterior) -> dict[str, Any]:
    """Scores of one restoration: PSNR of the unclipped picture, as the posterior mean minimises it."""
    def psnr(picture):
        return float(-10 * np.log10(np.mean((np.asarray(picture, np.float64) - truth) ** 2)))

    residual = np.asarray(measurement.y - measurement.operator.forward(restored.picture))
    seen = np.asarray(measurement.operator.forward(jnp.ones_like(restored.picture))) != 0
    line = {"psnr": psnr(restored.picture), "psnr_clipped": clipped_psnr(truth, restored.picture),
            "exact": psnr(bound.mean), "residual": float(residual[seen].std() / measurement.noise.sigma)}
    if restored.samples is not None:
        low, high = (np.asarray(pick(restored.samples, 0)) for pick in (np.min, np.max))
        line["coverage"] = float(((low <= truth) & (truth <= high)).mean())
        line["spread"] = float(np.sqrt(np.mean(np.square(restored.spread)) / np.mean(np.square(bound.deviation))))
    return line


@dataclass(frozen=True)
class Asked:
    """How much of the study is computed now."""

    minutes: float = 30.0
    """No line is begun after that."""
    pictures: int = 6
    """Pictures of each set."""
    seeds: int = 2
    """Draws of noise and chains for each picture."""
    sets: tuple[str, ...] = ("prior", "held-out")
    """Of prior, held-out, turned (held-out digits, by a quarter) and photographs."""
    only: tuple[str, ...] = ()
    """Methods; default: all."""
    tasks: tuple[str, ...] = ()
    """Tasks; default: all."""
    prior: str | None = None
    """A pretrained prior (digits) or a run's directory, whose network is the denoiser instead of the exact one."""
    study: Study = Study()


def jobs(asked: Asked, names: list[str]):
    """What there is to do, a picture of every task and method first, so that a short run is a small study."""
    for picture in range(asked.pictures):
        for seed in range(asked.seeds):
            for kind in asked.sets:
                for task in asked.tasks or tasks():
                    for method in names:
                        if suits(method, task):
                            yield {"set": kind, "task": task, "method": method, "picture": picture, "seed": seed}


def recipe_of(name: str, c: Study) -> dict[str, Any]:
    """What lines must share to stand in one table; fields that were added later stand in it only where they are not
    their default."""
    first = {"deviation": c.deviation, "calls": c.calls, "samples": c.samples}
    return {"denoiser": name, **first, **{field.name: getattr(c, field.name) for field in dataclasses.fields(c)
                                         if field.name not in first and getattr(c, field.name) != field.default}}


def denoiser(asked: Asked, mixture: exact.Mixture) -> tuple[str, DiffusionPrior]:
    """The name of the denoiser, and the prior that it makes."""
    spacing = {"even_log_snr": spacings.even_log_snr, "even_time": spacings.even_time}[asked.study.spacing]
    if asked.prior is None:
        schedule = schedules.cosine(1000)
        return "exact", DiffusionPrior(exact.exact_denoiser(mixture, schedule), schedule, spacing=spacing)
    model = load_prior(asked.prior) if asked.prior in PRIORS else load_run(asked.prior)
    name = asked.prior if asked.prior in PRIORS else f"{model.config.data} {model.step}"
    return name, model.prior(spacing)


class Rows:
    """The restorers by name, each made when it is first needed."""

    def __init__(self, prior: DiffusionPrior, c: Study, mixture: exact.Mixture):
        self.c, self.mixture, self.shared = c, mixture, Shared(KEPT)
        self.makers = methods(prior, c) | together(prior, c, self.shared)
        self.made, self.warm, self.infer = {}, set(), {}

    def inference(self, name: str, task: Task) -> exact.Inference:
        if name not in self.infer:
            self.infer[name] = exact.infer(self.mixture, task.operator, task.sigma / 255)
        return self.infer[name]

    def restored(
        self, method: str, name: str, task: Task, truth: np.ndarray, measurement: Measurement, key
    ) -> tuple[Restoration, float]:
        """The restoration and its seconds; only a row named "oracle" sees the truth."""
        if method == "exact posterior":
            def restore(measurement, key):
                return _exact(self.inference(name, task), self.c.samples, measurement, key)
        else:
            if method not in self.made:
                self.made[method] = self.makers[method]()
            restore = self.made[method]
            if method.endswith("oracle"):
                restore = restore(truth)
        if (method, name) not in self.warm:  # the first one compiles
            jax.block_until_ready(restore(measurement, key).picture)
            self.warm.add((method, name))
            self.shared.settle()
        began = time.monotonic()
        found = restore(measurement, key)
        jax.block_until_ready(found.picture)
        return found, time.monotonic() - began + self.shared.settle()


def compute(asked: Asked, file: Path) -> None:
    """Completes the lines, for at most so many minutes."""
    c, began = asked.study, time.monotonic()
    digits = data.load("mnist5k", "train").images.astype(np.float32) / 255
    mixture = exact.Mixture(jnp.asarray(digits), c.deviation)
    name, prior = denoiser(asked, mixture)
    recipe = recipe_of(name, c)
    done = [{key: line[key] for key in ("set", "task", "method", "picture", "seed")}
            for line in records.read_lines(file) if line["recipe"] == recipe]
    rows, all_tasks = Rows(prior, c, mixture), tasks()
    origin = records.provenance()
    where = f"{origin['machine']}, {origin['date']}"
    pictures = {kind: truths(kind, asked.pictures, mixture) for kind in asked.sets}
    for job in jobs(asked, [row for row in ("exact posterior", *rows.makers) if not asked.only or row in asked.only]):
        if job in done or time.monotonic() - began > 60 * asked.minutes:
            continue
        task, truth = all_tasks[job["task"]], pictures[job["set"]][job["picture"]]
        measurement = measure(task, truth, job["picture"], job["seed"])
        key = jax.random.fold_in(jax.random.key(200), job["seed"])
        restored, seconds = rows.restored(job["method"], job["task"], task, truth, measurement, key)
        bound = exact.posterior_of(rows.inference(job["task"], task), task.operator, measurement.y)
        line = {**job, **scored(truth, measurement, restored, bound), "calls": restored.evidence.calls,
                "seconds": round(seconds, 3), "where": where, "recipe": recipe}
        if restored.evidence.steps:
            line["steps"] = restored.evidence.steps
        if restored.evidence.error is not None:
            line["error"] = restored.evidence.error
        records.append_lines(file, [line])


def _exact(given: exact.Inference, samples: int, measurement: Measurement, key) -> Restoration:
    """The exact posterior, by what is known of it already."""
    found = exact.posterior_of(given, measurement.operator, measurement.y)
    drawn = exact.posterior_samples(given, measurement.operator, measurement.y, key, samples)
    return Restoration(found.mean, found.deviation, samples=drawn)


def clipped_grid(rows: list, path: Path) -> None:
    """Rows of pictures in [0, 1], of equal length; measurements of fewer pixels are made larger."""
    def whole(picture):
        picture = np.clip(np.asarray(picture), 0, 1)
        scale = SIDE // len(picture)
        return np.repeat(np.repeat(picture, scale, 0), scale, 1)

    pictures = np.stack([whole(picture) for row in rows for picture in row])
    plots.save_grid(np.round(255 * pictures).astype(np.uint8), path, len(rows[0]))


def show(c: Study, path: Path) -> None:
    """A picture: for each task the truth, the measurement, the exact posterior mean, and what three methods make."""
    digits = data.load("mnist5k", "train").images.astype(np.float32) / 255
    mixture = exact.Mixture(jnp.asarray(digits), c.deviation)
    _, prior = denoiser(Asked(study=c), mixture)
    truth = truths("held-out", 3, mixture)[2]
    every, rows = methods(prior, c), []
    for name, task in tasks().items():
        if name in ("denoise 15", "denoise 25", "inpaint 50 %"):
            continue
        measurement = measure(task, truth, 2, 0)
        row = [truth, measurement.y, exact.exact_posterior(mixture)(measurement, jax.random.key(0)).picture]
        for method in ("decoupled, matched", "PiGDM", "DiffPIR"):
            found = every[method]()(measurement, jax.random.key(1))
            row += [found.picture, found.samples[0]]
        rows.append(row)
    clipped_grid(rows, path)


def show_unions(c: Study, path: Path) -> None:
    """A turned digit denoised with the trained network: the truth, the measurement, and SHOWN."""
    digits = data.load("mnist5k", "train").images.astype(np.float32) / 255
    mixture = exact.Mixture(jnp.asarray(digits), c.deviation)
    _, prior = denoiser(Asked(prior="digits", study=c), mixture)
    every = methods(prior, c) | together(prior, c, Shared(KEPT))
    truth, rows = truths("turned", 3, mixture)[2], []
    for name in ("denoise 25", "denoise 50"):
        measurement = measure(tasks()[name], truth, 2, 0)
        rows.append([truth, measurement.y, *(every[method]()(measurement, jax.random.key(1)).picture
                                             for method in SHOWN)])
    clipped_grid(rows, path)


def main() -> None:
    asked = tyro.cli(Asked, description=__doc__)
    devices.set_up()
    file = RESULTS / "together.jsonl"
    compute(asked, file)
    if not (RESULTS / "together.png").exists():
        show(Study(), RESULTS / "together.png")
    if not (RESULTS / "together_turned.png").exists():
        show_unions(Study(calls=20), RESULTS / "together_turned.png")
    together_page.write(records.read_lines(file), RESULTS / "together.md")


if __name__ == "__main__":
    main()
