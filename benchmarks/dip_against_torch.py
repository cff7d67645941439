"""The same DIP recipe here and in plain PyTorch, on the same noisy F16: docs/results/dip_against_torch.md.

Weights, codes and jitter are each library's own, so single fits differ; the means over seeds should not.

    python benchmarks/dip_against_torch.py --side 64 --width 32 --num-steps 600 --seeds 4
"""
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.places import F16, REPO  # noqa: E402
from dipddpm_jax import devices, dip, records
from dipddpm_jax.commands import sources
from dipddpm_jax.inverse import noises
from dipddpm_jax.judging import metrics
from dipddpm_jax.networks import SkipNet

Curves = list[tuple[np.ndarray, np.ndarray]]  # PSNR of the output and of the average, step by step, for each seed


def psnr(picture: np.ndarray, clean: np.ndarray) -> float:
    """dB, for pictures in [0, 1], not clipped."""
    return float(metrics.psnr(jnp.asarray(clean)[None], jnp.asarray(picture)[None])[0])


def ours(clean: np.ndarray, noisy: np.ndarray, widths: tuple[int, ...], num_steps: int, seeds: int) -> Curves:
    """Fits of this library."""
    side, channels = clean.shape[0], clean.shape[-1]
    fit = dip.Dip(SkipNet(channels, widths, widths, (4,) * len(widths)), dip.backtracking(optax.adam(0.01)))
    advance, curves = jax.jit(partial(fit.advance, num_steps=num_steps)), []
    for seed in range(seeds):
        code_key, key = jax.random.split(jax.random.key(seed))
        problem = dip.DipProblem(dip.noise_code(code_key, side, side), jnp.asarray(noisy), jnp.asarray(clean))
        _, curve = advance(problem, fit.init(problem, key))
        curves.append((np.asarray(curve["psnr"]), np.asarray(curve["psnr_average"])))
    return curves


def theirs(clean: np.ndarray, noisy: np.ndarray, widths: tuple[int, ...], num_steps: int, seeds: int) -> Curves:
    """Fits of the PyTorch reference."""
    import torch

    from benchmarks.torch_reference import skip_net

    target, curves = torch.tensor(noisy.transpose(2, 0, 1)[None]), []
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = skip_net.skip_net(32, clean.shape[-1], widths, widths, (4,) * len(widths))
        rows: list[tuple[float, float]] = []

        def note(_, step, rows=rows):
            rows.append(tuple(psnr(x[0].numpy().transpose(1, 2, 0), clean) for x in (step.out, step.average)))

        skip_net.fit_dip(network, torch.optim.Adam(network.parameters(), lr=0.01), target,
                         0.1 * torch.rand(1, 32, *clean.shape[:2]), num_steps,
                         backtracking=skip_net.Backtracking(), on_step=note)
        curves.append(tuple(np.array(column) for column in zip(*rows)))
    return curves


def main(side: int = 64, width: int = 128, levels: int = 5, num_steps: int = 3000, seeds: int = 3) -> None:
    """Runs both, and writes the comparison."""
    devices.set_up()
    clean = sources.read_pictures(str(F16), side).pictures[0]
    noisy = np.asarray(noises.add_gaussian(jax.random.key(0), jnp.asarray(clean), 25 / 255))
    lines = ["# The DIP recipe here and in PyTorch", "",
             f"F16 at {side}x{side}, sigma 25 (noisy: {psnr(noisy, clean):.2f} dB), the same noisy picture for all; "
             f"hourglass of {levels} levels of {width} channels (4 in the skips), code of 32 channels, jitter 1/30, "
             f"Adam 0.01, {num_steps} steps, {seeds} seeds. PSNR in dB: mean over seeds, +- standard error.", "",
             f"Rebuilt by `python benchmarks/dip_against_torch.py --side {side} --width {width} --levels {levels} "
             f"--num-steps {num_steps} --seeds {seeds}`.", "",
             "| | best output | best average | last average | seconds a fit |", "|---|---|---|---|---|"]
    table = []
    for name, fits in (("this library", ours), ("PyTorch", theirs)):
        began = time.monotonic()
        curves = fits(clean, noisy, (width,) * levels, num_steps, seeds)
        scores = np.array([[output.max(), average.max(), average[-1]] for output, average in curves])
        table.append(scores)
        cells = [f"{m:.2f} +- {s:.2f}" for m, s in zip(scores.mean(0), scores.std(0, ddof=1) / np.sqrt(seeds))]
        lines.append(f"| {name} | {' | '.join(cells)} | {(time.monotonic() - began) / seeds:.0f} |")
        print(records.json_text({"library": name, "scores": scores.round(3)}), flush=True)
    lines.append(f"| difference | {' | '.join(f'{d:+.2f}' for d in table[0].mean(0) - table[1].mean(0))} | |")
    lines += ["", "Seconds include compilation.", ""]
    (REPO / "docs" / "results").mkdir(parents=True, exist_ok=True)
    (REPO / "docs" / "results" / "dip_against_torch.md").write_text("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
