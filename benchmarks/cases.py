"""The jobs of speed.py: what is raced, in JAX and in PyTorch."""
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn

from benchmarks.torch_reference import diffusion, skip_net, system001, system002, system004
from dipddpm_jax import devices, dip
from dipddpm_jax.commands import builders
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.diffusion import samplers, schedules, training
from dipddpm_jax.diffusion.denoisers import from_network
from dipddpm_jax.diffusion.forward import training_pair
from dipddpm_jax.dip import stopping
from dipddpm_jax.networks import ContextUnet, ConvStack, SkipNet, SmallUNet
from dipddpm_jax.networks.layers import initial_variables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRAPHS = "compile, CUDA graphs, channels_last, fused Adam"
TORCH_MODES = ("eager", "channels_last, fused Adam", "compile", "compile, channels_last, fused Adam",
               *((GRAPHS,) if DEVICE == "cuda" else ()))
BATCH = 128
REPOSITORY = Path(__file__).parents[1]
Run = Callable[[], None]  # does `Case.units` iterations and waits for them


class How(NamedTuple):
    """quick: few rows, short chains; compiled: PyTorch with torch.compile too."""

    quick: bool = False
    compiled: bool = True


class Case(NamedTuple):
    """One row of the table: builders of contenders, by name; a JAX name starts with "JAX"."""

    name: str
    units: int  # iterations in a run
    contenders: dict[str, Callable[[], Run]]


def torch_adam(net: torch.nn.Module, mode: str, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), rate, fused=True if "fused" in mode else None)


def prepared(net: torch.nn.Module, mode: str) -> torch.nn.Module:
    net = net.to(DEVICE)
    if "channels_last" in mode:
        net = net.to(memory_format=torch.channels_last)
    if "compile" not in mode:
        return net
    torch._dynamo.config.recompile_limit = 1000  # else later jobs of this process would run uncompiled, in silence
    return torch.compile(net, dynamic=False, mode="reduce-overhead" if mode == GRAPHS else None)


def laid_out(x: torch.Tensor, mode: str) -> torch.Tensor:
    x = x.to(DEVICE)
    return x.contiguous(memory_format=torch.channels_last) if "channels_last" in mode else x


def finish() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def torch_contenders(build: Callable[[str], Run], compiled: bool) -> dict[str, Callable[[], Run]]:
    modes = [mode for mode in TORCH_MODES if compiled or "compile" not in mode]
    return {f"PyTorch {mode}": (lambda mode=mode: build(mode)) for mode in modes}


# Job 1: a training step


def device_counts() -> list[int]:
    """1, and all that there are (a CPU is as many as one likes)."""
    return sorted({1, len(jax.devices())})


def jax_training(network, schedule, shape, labels, units: int, chunked: bool, count: int = 1) -> Run:
    images = np.random.default_rng(0).integers(0, 256, (60_000, *shape), np.uint8)
    labels = None if labels is None else jnp.asarray(np.resize(labels, len(images)), jnp.int32)
    pixels, optimizer = training.Pixels(), optax.adam(1e-3)
    some = (pixels.encode(jnp.asarray(images[:BATCH])), None if labels is None else labels[:BATCH])
    one = some[0][:1], None if labels is None else labels[:1]
    state = training.init_state(network, optimizer, *one, jax.random.key(0))
    loss = training.make_loss(network, partial(training_pair, schedule, "eps"), jnp.dtype("float32"))
    step = training.make_train_step(loss, schedule.num_steps, optimizer, ema_decay=0.999, drop_rate=0.1)
    if chunked:
        mesh = devices.make_mesh(count, BATCH)
        everywhere, across = devices.replicated(mesh), devices.batch_sharding(mesh)
        images, state, labels = jax.device_put((jnp.asarray(images), state, labels), everywhere)
        chunk = training.make_chunk(
            step, BATCH, units, pixels.encode, lambda batch: jax.lax.with_sharding_constraint(batch, across),
            (jax.tree.map(lambda _: everywhere, state), everywhere))
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


def training_case(name, network, schedule, shape, labels, make_net, step, units, how: How) -> Case:
    ours = {f"JAX scan, {count} device(s)": (
        lambda count=count: jax_training(network, schedule, shape, labels, units, True, count))
        for count in device_counts()}
    ours["JAX step"] = lambda: jax_training(network, schedule, shape, labels, units, False)
    theirs = {} if make_net is None else torch_contenders(
        lambda mode: torch_training(make_net, step, shape, labels, units, mode), how.compiled)
    return Case(name, units, ours | theirs)


def training_cases(how: How) -> Iterator[Case]:
    tables = system001.Tables(*(table.to(DEVICE) for table in diffusion.linear_tables(1e-4, 0.02, 1000)))
    yield training_case(
        f"train step, SmallUNet, batch {BATCH}, 28x28", SmallUNet(), schedules.linear(1000), (28, 28, 1), None,
        system001.UNet, lambda net, adam, x0, _: system001.train_step(net, adam, tables, x0), 4 if how.quick else 16,
        how)
    if how.quick:
        return
    context = torch.nn.functional.one_hot(torch.arange(BATCH) % 10, 10).float().to(DEVICE)
    tables4 = system004.Tables(*(table.to(DEVICE) for table in system004.linear_tables()))
    yield training_case(
        f"train step, ContextUnet F=64, batch {BATCH}, 28x28", ContextUnet(10, 400, 64, 1),
        schedules.linear_at_zero(400), (28, 28, 1), np.arange(10), lambda: system004.ContextUnet(1, 64, 10, 7),
        lambda net, adam, x0, _: system004.train_step(net, adam, tables4, x0, context), 4, how)
    yield training_case(
        f"train step, UNet as `train.py` has it (ours alone), batch {BATCH}, 28x28", recommended_network(),
        schedules.cosine(1000), (28, 28, 1), np.arange(10), None, None, 4, how)


def recommended_network() -> nn.Module:
    """The network that `train.py` trains by default: preset `unet`, on digits with ten labels."""
    config = PRESETS["unet"][1]
    facts = Facts((28, 28, 1), tuple("0123456789"))
    return builders.make_network(config.network, facts, config.schedule.num_steps)


# Job 2: sampling


def jax_sampling(batch: int, grid: np.ndarray, sampler: Callable, count: int = 1, noise: str = "threefry2x32") -> Run:
    network, schedule, shape = SmallUNet(), schedules.linear(1000), (28, 28, 1)
    example = jnp.zeros((1, *shape)), jnp.ones(1, jnp.int32)
    variables = initial_variables(network, jax.random.key(0), *example)

    @jax.jit
    def chain(variables, keys):
        noise = samplers.gaussian_noise(keys, shape)
        denoise = from_network(lambda x, t, labels: network.apply(variables, x, t, labels), schedule)
        return sampler(denoise, schedule, noise(jnp.int32(schedule.num_steps)), grid, noise).x

    keys = jax.random.split(jax.random.key(1, impl=noise), batch)
    mesh = devices.make_mesh(count, batch)
    keys, variables = (jax.device_put(keys, devices.batch_sharding(mesh)),
                       jax.device_put(variables, devices.replicated(mesh)))
    return lambda: jax.block_until_ready(chain(variables, keys))


def jax_samplings(batch: int, grid: np.ndarray, sampler: Callable) -> dict[str, Callable[[], Run]]:
    ours = {f"JAX scan, {count} device(s)": lambda count=count: jax_sampling(batch, grid, sampler, count)
            for count in device_counts() if batch % count == 0}
    if sampler is samplers.ancestral:  # rbg is not our default: under vmap a picture's noise depends on its batch
        ours["JAX scan, 1 device(s), rbg noise"] = lambda: jax_sampling(batch, grid, sampler, 1, "rbg")
    return ours


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


def sampling_cases(how: How) -> Iterator[Case]:
    for batch in (1, 16) if how.quick else (1, 16, 64, 256):
        steps = 50 if how.quick else max(1000 // batch, 10)
        grid = np.arange(1000, 999 - steps, -1)  # every step costs the same: chains of many pictures are cut short
        yield Case(f"sampling, SmallUNet, batch {batch}: one of 1000 ancestral steps", steps, {
            **jax_samplings(batch, grid, samplers.ancestral),
            **torch_contenders(lambda mode, batch=batch, grid=grid: torch_sampling(batch, grid, False, mode),
                               how.compiled)})
    grid = np.arange(1000, -1, -20)
    yield Case("sampling, SmallUNet, batch 16: one of 50 DDIM steps", 50, {
        **jax_samplings(16, grid, samplers.ddim),
        **torch_contenders(lambda mode: torch_sampling(16, grid, True, mode), how.compiled)})


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
    "large": Fit("skip net of system 001, 128x128", SkipNet(), skip_net.skip_net, 128, 1, 1, 20),
    "stack64": Fit("3-layer stack, 64x64", ConvStack(), system002.ConvStack, 64, 3, 3, 10),
}


def dip_start(fit: Fit, how: dip.Dip, seed: int) -> tuple[dip.DipProblem, dip.DipState]:
    rng = np.random.default_rng(seed)
    problem = dip.DipProblem(jnp.asarray(rng.uniform(size=(fit.side, fit.side, fit.depth)) / 10, jnp.float32),
                             jnp.asarray(rng.uniform(size=(fit.side, fit.side, fit.channels)), jnp.float32),
                             sigma=jnp.float32(0.1))
    return problem, how.init(problem, jax.random.key(seed))


def jax_fit(fit: Fit, units: int, stopper: stopping.Stopper | None = None, alone: bool = False) -> Run:
    how = dip.Dip(fit.network, optax.adam(1e-2), stopper=stopper or stopping.never())
    problem, state = dip_start(fit, how, 0)
    length, calls = (1, units) if alone else (units, 1)
    advance = jax.jit(partial(dip.advance_one, how), static_argnums=2, donate_argnums=1)

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
    many = jax.vmap(how.advance, (0, 0, None)) if all_at_once else partial(dip.advance_all, how)
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


def dip_cases(how: How) -> Iterator[Case]:
    for key in ("small", "stack") if how.quick else ("small", "stack", "F16"):
        fit = FITS[key]
        yield Case(f"DIP iteration, {fit.name}", fit.units, {
            "JAX scan": lambda fit=fit: jax_fit(fit, fit.units),
            "JAX step": lambda fit=fit: jax_fit(fit, fit.units, alone=True),
            **torch_contenders(lambda mode, fit=fit: torch_fit(fit, 1, mode), how.compiled)})


def batch_cases(how: How) -> Iterator[Case]:
    for key, count in (("small", 16),) if how.quick else (("small", 16), ("small", 64), ("stack64", 16)):
        fit = FITS[key]
        fit = fit._replace(units=10)
        yield Case(f"DIP iteration of one of {count} fits, {fit.name}", fit.units * count, {
            "JAX one by one": lambda fit=fit, count=count: jax_fits(fit, count, False),
            "JAX vmap": lambda fit=fit, count=count: jax_fits(fit, count, True),
            **torch_contenders(lambda mode, fit=fit, count=count: torch_fit(fit, count, mode), False)})


def rule_cases(how: How) -> Iterator[Case]:
    for fit in (FITS["small"], FITS["large"]):
        yield rule_case(fit)


def rule_case(fit: Fit) -> Case:
    rules = {"none": stopping.never(), "windowed variance": stopping.windowed_variance(100, 1000),
             "exponential variance": stopping.exponential_variance(patience=1000),
             "discrepancy": stopping.discrepancy()}
    return Case(f"stop rules, {fit.name}", fit.units, {
        f"JAX {name}": lambda rule=rule: jax_fit(fit, fit.units, rule) for name, rule in rules.items()})


# Job 6: from nothing to a picture on the disk

FIRST_SAMPLE = """
import numpy as np, torch
from PIL import Image
from benchmarks.torch_reference import diffusion, system001
net = system001.UNet().eval()
net.load_state_dict(torch.load({weights!r}))
with torch.inference_mode():
    tables = diffusion.linear_tables(1e-4, 0.02, 1000)
    x = system001.generate(net, tables, torch.randn(1, 1, 28, 28), range(999, -1, -1))
Image.fromarray(np.uint8(x[0, 0].clamp(-1, 1) * 127.5 + 127.5)).save({picture!r})
"""


def command(words: list[str], cache: Path, fresh: bool, out: Path | None = None) -> Run:
    """Another process, with a compilation cache of its own that is emptied before every run if `fresh`; so is `out`,
    which it writes to."""

    def run():
        for folder in [cache] * fresh + [out] * (out is not None):
            shutil.rmtree(folder, ignore_errors=True)
        environment = os.environ | {"XDG_CACHE_HOME": str(cache), "CUDA_VISIBLE_DEVICES": os.environ.get(
            "CUDA_VISIBLE_DEVICES", "0")}
        subprocess.run(words, cwd=REPOSITORY, env=environment, check=True, capture_output=True)

    return run


def first_sample_cases(how: How) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        weights, cache, out = str(Path(folder, "weights.pt")), Path(folder, "cache"), Path(folder, "out")
        torch.save(system001.UNet().state_dict(), weights)
        ours = [sys.executable, "sample.py", "--torch-weights", weights, "--preset", "small-unet", "--count", "1",
                "--sampler", "ancestral", "--out", str(out)]
        theirs = FIRST_SAMPLE.format(weights=weights, picture=str(Path(folder, "sample.png")))
        yield Case("first sample, SmallUNet, 1000 steps: a new process, from its start to the picture", 1, {
            "JAX, cold cache": lambda: command(ours, cache / "cold", True, out),
            "JAX, warm cache": lambda: command(ours, cache / "warm", False, out),
            "PyTorch eager, new process": lambda: command([sys.executable, "-c", theirs], cache, False)})


# Job 7: scaling


def scaling_cases(how: How) -> Iterator[Case]:
    count = 1
    while count <= len(jax.devices()) and len(jax.devices()) > 2:  # else job 1 has told all
        yield Case(f"scaling, train step of SmallUNet, batch {BATCH}, {count} device(s)", 4, {
            "JAX scan": lambda count=count: jax_training(
                SmallUNet(), schedules.linear(1000), (28, 28, 1), None, 4, True, count)})
        count *= 2
    for batch in (1, 16) if how.quick else (1, 4, 16, 64, 256, 1024):
        steps = max(20 // batch, 3)
        grid = np.arange(1000, 999 - steps, -1)
        yield Case(f"scaling, one ancestral step of SmallUNet, batch {batch}", steps, {
            **jax_samplings(batch, grid, samplers.ancestral),
            **torch_contenders(lambda mode, batch=batch, grid=grid: torch_sampling(batch, grid, False, mode), False)})
    for side in (32, 64) if how.quick else (32, 64, 128, 256, 512):
        fit = Fit(f"{side}x{side}", SkipNet(), skip_net.skip_net, side, 1, 1, max(3200 // side**2, 2))
        yield Case(f"scaling, DIP iteration, skip net of system 001, {fit.name}", fit.units, {
            "JAX scan": lambda fit=fit: jax_fit(fit, fit.units),
            **torch_contenders(lambda mode, fit=fit: torch_fit(fit, 1, mode), how.compiled)})


JOBS = {1: training_cases, 2: sampling_cases, 3: dip_cases, 4: batch_cases, 5: rule_cases, 6: first_sample_cases,
        7: scaling_cases}
