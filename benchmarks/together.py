"""Every way to restore with a diffusion prior, against the exact posterior: docs/results/together.md, together.jsonl.

The prior is a mixture of N(x_i, s^2 I) over the 4,500 training digits, whose denoiser and posteriors are in closed
form. Each method runs with that denoiser, so that what is missing is the method's fault, and then with a trained
network. A line of together.jsonl is one picture restored by one method; lines that are there already are not computed
again, so that the study may be completed in parts:

    python benchmarks/together.py --minutes 30
    python benchmarks/together.py --prior digits --minutes 30
"""
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import together_page  # noqa: E402
from benchmarks.places import REPO  # noqa: E402
from dipddpm_jax import data, devices, plots, records  # noqa: E402
from dipddpm_jax.commands.model import load_run  # noqa: E402
from dipddpm_jax.commands.starts import load_prior  # noqa: E402
from dipddpm_jax.diffusion import schedules  # noqa: E402
from dipddpm_jax.hybrids import ddnm, decoupled, diffpir, dps, pigdm, truncated_reverse  # noqa: E402
from dipddpm_jax.hybrids.prior import DiffusionPrior  # noqa: E402
from dipddpm_jax.inverse import exact, noises, operators  # noqa: E402
from dipddpm_jax.inverse.measurement import Measurement, Restore  # noqa: E402
from dipddpm_jax.judging.metrics import clipped_psnr  # noqa: E402
from dipddpm_jax.pretrained import PRIORS  # noqa: E402

RESULTS = REPO / "docs" / "results"
SIDE = 28


@dataclass(frozen=True)
class Study:
    """What a line depends on, beside its picture, task and method."""

    deviation: float = 0.1
    """s, of pixels in [0, 1]."""
    calls: int = 50
    """Network calls of a chain."""
    samples: int = 19
    """Chains of a picture: the truth lies between the least and the greatest of 19 posterior samples in 90 % of all
    cases, whatever the posterior looks like."""


@dataclass(frozen=True)
class Task:
    """An operator, and the standard deviation of the noise, of 255."""

    operator: operators.Operator
    sigma: float


def tasks() -> dict[str, Task]:
    """Denoising at four levels, and four operators."""
    rows, columns = np.indices((SIDE, SIDE))
    box = ~((abs(rows - 13.5) < 7) & (abs(columns - 13.5) < 7))
    scattered = operators.random_mask(jax.random.key(7), SIDE, SIDE, 0.1)
    return {
        **{f"denoise {sigma}": Task(operators.identity, sigma) for sigma in (15, 25, 50, 255)},
        "inpaint 90 %": Task(operators.masked(scattered), 15),
        "inpaint box": Task(operators.masked(jnp.asarray(box[..., None], jnp.float32)), 15),
        "x4": Task(operators.downsample(SIDE, SIDE, 4), 15),
        "deblur": Task(operators.blur(SIDE, SIDE, 1.6), 15),
    }


def methods(prior: DiffusionPrior, c: Study) -> dict[str, Callable[[], Restore]]:
    """What is compared; the first three only denoise."""
    many = {"calls": c.calls, "samples": c.samples}
    return {
        "one step": lambda: truncated_reverse.one_step(prior),
        "truncated, ddim": lambda: truncated_reverse.truncated_reverse(prior, c.calls, 1, "ddim"),
        "truncated, ancestral": lambda: truncated_reverse.truncated_reverse(prior, **many),
        "DDNM+": lambda: ddnm.ddnm(prior, **many),
        "DiffPIR": lambda: diffpir.diffpir(prior, **many),
        "DPS": lambda: dps.dps(prior, **many),
        "PiGDM": lambda: pigdm.pigdm(prior, **many),
        "PiGDM, matched": lambda: pigdm.pigdm(prior, **many, variance=pigdm.matched_variance),
        "DAPS, s/a": lambda: decoupled.decoupled(prior, **many, variance=decoupled.noise_variance),
        "decoupled, matched": lambda: decoupled.decoupled(prior, **many),
    }


DENOISE_ONLY = ("one step", "truncated, ddim", "truncated, ancestral")
REFUSED = {("DDNM+", "deblur")}  # it says so: the pseudo-inverse of a blur multiplies noise


def truths(c: Study, kind: str, count: int, mixture: exact.Mixture) -> np.ndarray:
    """Pictures of the prior itself, or digits that it never saw (of mixed classes, in the order of the file)."""
    if kind == "prior":
        return np.asarray(mixture.draw(jax.random.key(11), 64))[:count]
    return data.load("mnist5k", "test").images[:count].astype(np.float32) / 255


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
    only: tuple[str, ...] = ()
    """Methods; default: all."""
    prior: str | None = None
    """A pretrained prior (digits) or a run's directory, whose network is the denoiser instead of the exact one."""
    study: Study = Study()


def jobs(asked: Asked, names: list[str]):
    """What there is to do, a picture of every task and method first, so that a short run is a small study."""
    for picture in range(asked.pictures):
        for seed in range(asked.seeds):
            for kind in asked.sets:
                for task in tasks():
                    for method in names:
                        if (method not in DENOISE_ONLY or task.startswith("denoise")) and (
                                method, task) not in REFUSED:
                            yield {"set": kind, "task": task, "method": method, "picture": picture, "seed": seed}


def denoiser(asked: Asked, mixture: exact.Mixture) -> tuple[str, DiffusionPrior]:
    """The name of the denoiser, and the prior that it makes."""
    if asked.prior is None:
        schedule = schedules.cosine(1000)
        return "exact", DiffusionPrior(exact.exact_denoiser(mixture, schedule), schedule)
    model = load_prior(asked.prior) if asked.prior in PRIORS else load_run(asked.prior)
    name = asked.prior if asked.prior in PRIORS else f"{model.config.data} {model.step}"
    return name, DiffusionPrior(model.denoiser(), model.schedule, model.pixels)


def compute(asked: Asked, file: Path) -> None:
    """Completes the lines, for at most so many minutes."""
    c, began = asked.study, time.monotonic()
    digits = data.load("mnist5k", "train").images.astype(np.float32) / 255
    mixture = exact.Mixture(jnp.asarray(digits), c.deviation)
    name, prior = denoiser(asked, mixture)
    recipe = {"denoiser": name, **dataclasses.asdict(c)}
    done = [{key: line[key] for key in ("set", "task", "method", "picture", "seed")}
            for line in records.read_lines(file) if line["recipe"] == recipe]
    every, made, all_tasks = methods(prior, c), {}, tasks()
    infer = {}
    origin = records.provenance()
    where = f"{origin['machine']}, {origin['date']}"
    pictures = {kind: truths(c, kind, asked.pictures, mixture) for kind in asked.sets}
    for job in jobs(asked, [name for name in ("exact posterior", *every) if not asked.only or name in asked.only]):
        if job in done or time.monotonic() - began > 60 * asked.minutes:
            continue
        task, truth = all_tasks[job["task"]], pictures[job["set"]][job["picture"]]
        if job["task"] not in infer:
            infer[job["task"]] = exact.infer(mixture, task.operator, task.sigma / 255)
        given, method = infer[job["task"]], job["method"]
        measurement = measure(task, truth, job["picture"], job["seed"])
        if method not in made:
            made[method] = every[method]() if method in every else partial(_exact, infer, c.samples)
        key = jax.random.fold_in(jax.random.key(200), job["seed"])
        run = partial(made[method], measurement, key) if method in every else partial(
            made[method], job["task"], measurement, key)
        if (method, job["task"]) not in made:  # the first one compiles
            made[method, job["task"]] = jax.block_until_ready(run().picture)
        started = time.monotonic()
        restored = run()
        jax.block_until_ready(restored.picture)
        seconds = time.monotonic() - started
        bound = exact.posterior_of(given, task.operator, measurement.y)
        line = {**job, **scored(truth, measurement, restored, bound), "calls": restored.evidence.calls,
                "seconds": round(seconds, 3), "where": where, "recipe": recipe}
        records.append_lines(file, [line])


def _exact(infer: dict, samples: int, task: str, measurement: Measurement, key):
    """The exact posterior, by what is known of it already."""
    from dipddpm_jax.inverse.measurement import Restoration

    found = exact.posterior_of(infer[task], measurement.operator, measurement.y)
    drawn = exact.posterior_samples(infer[task], measurement.operator, measurement.y, key, samples)
    return Restoration(found.mean, found.deviation, samples=drawn)


def show(c: Study, path: Path) -> None:
    """A picture: for each task the truth, the measurement, the exact posterior mean, and what three methods make."""
    digits = data.load("mnist5k", "train").images.astype(np.float32) / 255
    mixture = exact.Mixture(jnp.asarray(digits), c.deviation)
    _, prior = denoiser(Asked(), mixture)
    truth = truths(c, "held-out", 3, mixture)[2]
    every, rows = methods(prior, c), []
    for name, task in tasks().items():
        if name in ("denoise 15", "denoise 25"):
            continue
        measurement = measure(task, truth, 2, 0)
        bound = exact.exact_posterior(mixture)(measurement, jax.random.key(0))
        y = np.asarray(measurement.y)
        scale = SIDE // y.shape[0]
        row = [truth, np.repeat(np.repeat(y, scale, 0), scale, 1), bound.picture]
        for method in ("decoupled, matched", "PiGDM", "DiffPIR"):
            found = every[method]()(measurement, jax.random.key(1))
            row += [found.picture, found.samples[0]]
        rows += [np.clip(np.asarray(picture), 0, 1) for picture in row]
    plots.save_grid(np.round(255 * np.stack(rows)).astype(np.uint8), path, 9)


def main() -> None:
    asked = tyro.cli(Asked, description=__doc__)
    devices.set_up()
    file = RESULTS / "together.jsonl"
    compute(asked, file)
    if not (RESULTS / "together.png").exists():
        show(asked.study, RESULTS / "together.png")
    together_page.write(records.read_lines(file), RESULTS / "together.md")


if __name__ == "__main__":
    main()
