"""JAX beside PyTorch, job by job: interleaved runs, medians, and the ratio to the best PyTorch of the same run.

    python benchmarks/speed.py [--quick] [--jobs 1 2 3] [--json FILE] [--markdown docs/results/speed.md]

Both sides run the same work in float32 with all the cores (or the GPU) of this machine. A PyTorch contender that does
not run here (no compiler, say) is named below the table. `--quick` runs fewer rounds, short chains, no torch.compile.
"""
import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.torch_reference import diffusion, skip_net, system001, system002, system004
from dipddpm_jax import dip, samplers, schedules, stopping, training
from dipddpm_jax.denoisers import from_network
from dipddpm_jax.networks import ContextUnet, ConvStack, SkipNet, SmallUNet, UNet
from dipddpm_jax.networks.layers import initial_variables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TORCH_MODES = ("eager", "channels_last, fused Adam", "compile", "compile, channels_last, fused Adam")
BATCH = 128
Run = Callable[[], None]  # does `Case.units` iterations and waits for them


class Case(NamedTuple):
    """One row of the table: builders of contenders, by name; a JAX name starts with "JAX"."""

    name: str
    units: int  # iterations in a run
    contenders: dict[str, Callable[[], Run]]


class Timing(NamedTuple):
    """Seconds an iteration; `first` is all seconds until the first run has ended, compilation included."""

    median: float
    first: float
    peak_mb: float
    flops: float  # of an iteration, as PyTorch counts them; 0 when unknown


def resident_mb(field: str) -> float:
    """VmRSS or VmHWM of this process; nan where /proc has none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan"))


def reset_peak() -> float:
    """Starts a new VmHWM and returns what is resident now."""
    gc.collect()
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_mb("VmRSS")


def race(case: Case, rounds: int, clock: Callable[[], float]) -> tuple[dict[str, Timing], dict[str, str]]:
    """Medians of interleaved runs, and the contenders that failed with their errors."""
    runs, first, peak, flops, failed = {}, {}, {}, {}, {}
    for name, build in case.contenders.items():
        before, began = reset_peak(), time.perf_counter()
        try:
            runs[name] = build()
            runs[name]()
        except Exception as error:  # noqa: BLE001 - whatever stops torch.compile is worth a line, not the whole table
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            runs.pop(name, None)
            continue
        first[name] = time.perf_counter() - began
        reset_peak()
        runs[name]()
        peak[name] = resident_mb("VmHWM") - before
        if name == "PyTorch eager":
            with FlopCounterMode(display=False) as counter:
                runs[name]()
            flops = dict.fromkeys(case.contenders, counter.get_total_flops() / case.units)
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = clock()
            run()
            seconds[name].append((clock() - began) / case.units)
    timings = {name: Timing(statistics.median(all_), first[name], peak[name], flops.get(name, 0))
               for name, all_ in seconds.items()}
    return timings, failed


def torch_adam(net: torch.nn.Module, mode: str, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), rate, fused=True if "fused" in mode else None)


def prepared(net: torch.nn.Module, mode: str) -> torch.nn.Module:
    net = net.to(DEVICE)
    if "channels_last" in mode:
        net = net.to(memory_format=torch.channels_last)
    return torch.compile(net) if "compile" in mode else net


def laid_out(x: torch.Tensor, mode: str) -> torch.Tensor:
    x = x.to(DEVICE)
    return x.contiguous(memory_format=torch.channels_last) if "channels_last" in mode else x


def finish() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def torch_contenders(build: Callable[[str], Run], quick: bool) -> dict[str, Callable[[], Run]]:
    modes = [mode for mode in TORCH_MODES if not (quick and "compile" in mode)]
    return {f"PyTorch {mode}": (lambda mode=mode: build(mode)) for mode in modes}


# Job 1: a training step


def jax_training(network, schedule, shape, labels, units: int, chunked: bool) -> Run:
    images = np.random.default_rng(0).integers(0, 256, (60_000, *shape), np.uint8)
    labels = None if labels is None else jnp.asarray(np.resize(labels, len(images)), jnp.int32)
    pixels, optimizer = training.Pixels(), optax.adam(1e-3)
    some = (pixels.encode(jnp.asarray(images[:BATCH])), None if labels is None else labels[:BATCH])
    one = some[0][:1], None if labels is None else labels[:1]
    state = training.init_state(network, optimizer, *one, jax.random.key(0))
    loss = training.make_loss(network, schedule, "eps", jnp.float32)
    step = training.make_train_step(loss, schedule.num_steps, optimizer)
    if chunked:
        images = jnp.asarray(images)
        chunk = training.make_chunk(step, BATCH, units, pixels.encode)
    else:
        alone = jax.jit(step, donate_argnums=0)

    def run():
        nonlocal state
        if chunked:
            state, _ = chunk(state, images, labels, jnp.int32(units))
        else:
            for _ in range(units):
                state, _ = alone(state, *some)
        jax.block_until_ready(state.params)

    return run


def torch_training(make_net, step, shape, labels, units: int, mode: str) -> Run:
    images = torch.randint(0, 256, (60_000, shape[2], *shape[:2]), dtype=torch.uint8, device=DEVICE)
    net = prepared(make_net(), mode)
    optimizer = torch_adam(net, mode, 1e-3)
    order, place = torch.randperm(len(images), device=DEVICE), 0

    def run():
        nonlocal place
        for _ in range(units):
            rows = order[place % 400 * BATCH :][:BATCH]
            x0 = laid_out(images[rows].float() / 127.5 - 1, mode)
            step(net, optimizer, x0, labels)
            place += 1
        finish()

    return run


def training_case(name, network, schedule, shape, labels, make_net, step, units, quick) -> Case:
    ours = {f"JAX {'chunk (scan)' if chunked else 'step'}": (
        lambda chunked=chunked: jax_training(network, schedule, shape, labels, units, chunked))
        for chunked in (True, False)}
    theirs = {} if make_net is None else torch_contenders(
        lambda mode: torch_training(make_net, step, shape, labels, units, mode), quick)
    return Case(name, units, ours | theirs)


def training_cases(quick: bool) -> Iterator[Case]:
    tables = system001.Tables(*(table.to(DEVICE) for table in diffusion.linear_tables(1e-4, 0.02, 1000)))
    yield training_case(
        f"train step, SmallUNet, batch {BATCH}, 28x28", SmallUNet(), schedules.linear(1000), (28, 28, 1), None,
        system001.UNet, lambda net, adam, x0, _: system001.train_step(net, adam, tables, x0), 4 if quick else 20, quick)
    if quick:
        return
    context = torch.nn.functional.one_hot(torch.arange(BATCH) % 10, 10).float().to(DEVICE)
    tables4 = system004.Tables(*(table.to(DEVICE) for table in system004.linear_tables()))
    yield training_case(
        f"train step, ContextUnet F=64, batch {BATCH}, 28x28", ContextUnet(10, 400, 64, 1),
        schedules.linear_at_zero(400), (28, 28, 1), np.arange(10), lambda: system004.ContextUnet(1, 64, 10, 7),
        lambda net, adam, x0, _: system004.train_step(net, adam, tables4, x0, context), 4, quick)
    yield training_case(
        f"train step, UNet (ours alone), batch {BATCH}, 28x28", UNet(), schedules.cosine(1000), (28, 28, 1), None,
        None, None, 4, quick)


# Job 2: sampling


def jax_sampling(batch: int, grid: np.ndarray, sampler: Callable) -> Run:
    network, schedule, shape = SmallUNet(), schedules.linear(1000), (28, 28, 1)
    example = jnp.zeros((1, *shape)), jnp.ones(1, jnp.int32)
    variables = initial_variables(network, jax.random.key(0), *example)

    @jax.jit
    def chain(variables, keys):
        noise = samplers.gaussian_noise(keys, shape)
        denoise = from_network(lambda x, t, labels: network.apply(variables, x, t, labels), schedule)
        return sampler(denoise, schedule, noise(jnp.int32(schedule.num_steps)), grid, noise).x

    keys = jax.random.split(jax.random.key(1), batch)
    return lambda: jax.block_until_ready(chain(variables, keys))


def torch_sampling(batch: int, grid: np.ndarray, deterministic: bool, mode: str) -> Run:
    net, tables = prepared(system001.UNet().eval(), mode), diffusion.linear_tables(1e-4, 0.02, 1000)
    bars = [1.0, *tables.alpha_bars.tolist()]

    @torch.inference_mode()
    def ddim(x):
        for t, s in zip(grid[:-1], grid[1:]):
            eps = net(x, torch.full((batch,), int(t) - 1, device=DEVICE))
            x0 = (x - (1 - bars[t]) ** 0.5 * eps) / bars[t] ** 0.5
            x = bars[s] ** 0.5 * x0 + (1 - bars[s]) ** 0.5 * eps
        return x

    def run():
        x = laid_out(torch.randn(batch, 1, 28, 28), mode)
        if deterministic:
            ddim(x)
        else:
            system001.generate(net, tables, x, [int(t) - 1 for t in grid[:-1]])
        finish()

    return run


def sampling_cases(quick: bool) -> Iterator[Case]:
    for batch in (1, 16) if quick else (1, 16, 64, 256):
        steps = 50 if quick else 1000 if batch <= 16 else 200
        grid = np.arange(1000, 999 - steps, -1)  # every step costs the same: long chains of many pictures are cut short
        yield Case(f"sampling, SmallUNet, batch {batch}: one of 1000 ancestral steps", steps, {
            "JAX scan": lambda batch=batch, grid=grid: jax_sampling(batch, grid, samplers.ancestral),
            **torch_contenders(lambda mode, batch=batch, grid=grid: torch_sampling(batch, grid, False, mode), quick)})
    grid = np.arange(1000, -1, -20)
    yield Case("sampling, SmallUNet, batch 16: one of 50 DDIM steps", 50, {
        "JAX scan": lambda: jax_sampling(16, grid, samplers.ddim),
        **torch_contenders(lambda mode: torch_sampling(16, grid, True, mode), quick)})


# Jobs 3, 4 and 5: deep image priors


class Fit(NamedTuple):
    """A DIP job: both networks, and the shapes of the code and the picture."""

    name: str
    network: Callable
    make_net: Callable[[], torch.nn.Module]
    side: int
    depth: int
    channels: int
    units: int


FITS = {
    "small": Fit("skip net of system 001, 32x32", SkipNet(), skip_net.skip_net, 32, 1, 1, 50),
    "stack": Fit("3-layer stack, 256x256", ConvStack(), system002.ConvStack, 256, 3, 3, 5),
    "F16": Fit("F16 skip net, 256x256", SkipNet(3, (128,) * 5, (128,) * 5, (4,) * 5), lambda: skip_net.skip_net(
        32, 3, (128,) * 5, (128,) * 5, (4,) * 5), 256, 32, 3, 2),
    "stack64": Fit("3-layer stack, 64x64", ConvStack(), system002.ConvStack, 64, 3, 3, 10),
}


def dip_start(fit: Fit, how: dip.Dip, seed: int) -> tuple[dip.DipProblem, dip.DipState]:
    rng = np.random.default_rng(seed)
    problem = dip.DipProblem(jnp.asarray(rng.uniform(size=(fit.side, fit.side, fit.depth)) / 10, jnp.float32),
                             jnp.asarray(rng.uniform(size=(fit.side, fit.side, fit.channels)), jnp.float32))
    return problem, how.init(problem, jax.random.key(seed))


def jax_fit(fit: Fit, units: int, stopper: stopping.Stopper | None = None, alone: bool = False) -> Run:
    how = dip.Dip(fit.network, optax.adam(1e-2), stopper=stopper or stopping.never())
    problem, state = dip_start(fit, how, 0)
    length, calls = (1, units) if alone else (units, 1)
    advance = jax.jit(how.advance, static_argnums=2, donate_argnums=1)

    def run():
        nonlocal state
        for _ in range(calls):
            state, _ = advance(problem, state, length)
        jax.block_until_ready(state.params)

    return run


def jax_fits(fit: Fit, count: int, all_at_once: bool) -> Run:
    how = dip.Dip(fit.network, optax.adam(1e-2))
    pairs = [dip_start(fit, how, seed) for seed in range(count)]
    problems, states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
    many = jax.vmap(how.advance, (0, 0, None)) if all_at_once else how.advance_all
    advance = jax.jit(many, static_argnums=2, donate_argnums=1)

    def run():
        nonlocal states
        states, _ = advance(problems, states, fit.units)
        jax.block_until_ready(states.params)

    return run


def torch_fit(fit: Fit, count: int, mode: str) -> Run:
    """`count` fits, one after the other."""
    nets = [prepared(fit.make_net(), mode) for _ in range(count)]
    optimizers = [torch_adam(net, mode, 1e-2) for net in nets]
    code = laid_out(torch.rand(1, fit.depth, fit.side, fit.side) / 10, mode)
    target = laid_out(torch.rand(1, fit.channels, fit.side, fit.side), mode)

    def run():
        for net, optimizer in zip(nets, optimizers):
            skip_net.fit_dip(net, optimizer, target, code, fit.units)
        finish()

    return run


def dip_cases(quick: bool) -> Iterator[Case]:
    for key in ("small", "stack") if quick else ("small", "stack", "F16"):
        fit = FITS[key]
        yield Case(f"DIP iteration, {fit.name}", fit.units, {
            "JAX scan": lambda fit=fit: jax_fit(fit, fit.units),
            "JAX step": lambda fit=fit: jax_fit(fit, fit.units, alone=True),
            **torch_contenders(lambda mode, fit=fit: torch_fit(fit, 1, mode), quick)})


def batch_cases(quick: bool) -> Iterator[Case]:
    for key, count in (("small", 16),) if quick else (("small", 16), ("small", 64), ("stack64", 16)):
        fit = FITS[key]
        yield Case(f"DIP iteration of one of {count} fits, {fit.name}", fit.units * count, {
            "JAX one by one": lambda fit=fit, count=count: jax_fits(fit, count, False),
            "JAX vmap": lambda fit=fit, count=count: jax_fits(fit, count, True),
            **torch_contenders(lambda mode, fit=fit, count=count: torch_fit(fit, count, mode), True)})


def rule_cases(quick: bool) -> Iterator[Case]:
    fit = FITS["small"]
    rules = {"none": stopping.never(), "windowed variance": stopping.windowed_variance(100, 1000),
             "exponential variance": stopping.exponential_variance(patience=1000),
             "discrepancy": stopping.discrepancy()}
    yield Case(f"stop rules, {fit.name}", fit.units, {
        f"JAX {name}": lambda rule=rule: jax_fit(fit, fit.units, rule) for name, rule in rules.items()})


JOBS = {1: training_cases, 2: sampling_cases, 3: dip_cases, 4: batch_cases, 5: rule_cases}


def matmul_peak(clock: Callable[[], float], size: int = 2048) -> dict[str, float]:
    """GFLOP/s of one large float32 product, in both libraries."""
    a = np.ones((size, size), np.float32)
    ours, theirs, product = jnp.asarray(a), torch.as_tensor(a, device=DEVICE), jax.jit(jnp.matmul)

    def torch_product():
        theirs @ theirs
        finish()

    case = Case("matmul", 1, {"JAX": lambda: lambda: jax.block_until_ready(product(ours, ours)),
                              "PyTorch": lambda: torch_product})
    return {name: 2e-9 * size**3 / timing.median for name, timing in race(case, 5, clock)[0].items()}


def rows_of(case: Case, timings: dict[str, Timing]) -> list[str]:
    best = min((t.median for name, t in timings.items() if name.startswith("PyTorch")), default=float("nan"))
    rows = []
    for name, t in timings.items():
        ratio = f"{best / t.median:.2f}" if np.isfinite(best) else ""
        rate = f"{t.flops / t.median / 1e9:.0f}" if t.flops else ""
        title = case.name if not rows else ""
        rows.append(f"| {title} | {name} | {1e3 * t.median:.3g} | {ratio} | {t.first:.1f} | {t.peak_mb:.0f} | {rate} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, short chains, no torch.compile")
    parser.add_argument("--jobs", type=int, nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rounds", type=int, help="runs of each contender (7; 3 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, for a shared CPU: pin to one core "
                        "(taskset -c 0) with OMP_NUM_THREADS=1")
    parser.add_argument("--tf32", action="store_true", help="on a GPU: let both sides use TF32")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    jax.config.update("jax_default_matmul_precision", "default" if args.tf32 else "highest")
    clock = time.process_time if args.cpu_time else time.perf_counter
    rounds = args.rounds or (3 if args.quick else 7)
    peak = matmul_peak(clock)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{cores} CPU core(s)"
    lines = [
        "# Speed beside PyTorch", "",
        f"{device}, {platform.machine()}; jax {jax.__version__} on {jax.default_backend()}, torch {torch.__version__}; "
        f"float32{' (TF32)' if args.tf32 else ''}; medians of {rounds} interleaved runs"
        f"{' (processor seconds)' if args.cpu_time else ''}. A matrix product of 2048: "
        + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in peak.items()) + ".", "",
        "| job | contender | ms an iteration | ratio to the best PyTorch | first run, s | peak memory, MB | GFLOP/s |",
        "|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    results, notes = {}, []
    for job in args.jobs:
        for case in JOBS[job](args.quick):
            timings, failed = race(case, rounds, clock)
            rows = rows_of(case, timings)
            print("\n".join(rows), flush=True)
            lines += rows
            notes += [f"{case.name}: {name} did not run ({error})" for name, error in failed.items()]
            results[case.name] = {name: timing._asdict() for name, timing in timings.items()}
            gc.collect()
    legend = ("Ratios above 1: faster than the best PyTorch. First run: with compilation. Peak memory: resident above "
              "what was resident before, in one process with both libraries. GFLOP/s: of PyTorch's count of the work.")
    lines += ["", legend, *notes]
    print("\n".join(["", legend, *notes]))
    if args.json:
        args.json.write_text(json.dumps({"machine": device, "matmul": peak, "jobs": results}, indent=1))
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
