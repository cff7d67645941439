"""Our networks beside the plain PyTorch ones of benchmarks/, on fresh random weights and sizes; needs PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.networks import forward, train_step

from dipddpm_jax import torch_weights
from dipddpm_jax.hybrids import filtered_start
from dipddpm_jax.networks import (
    AttentionUNet,
    ContextUnet,
    ConvStack,
    ResidualDenoiser,
    SkipNet,
    SmallUNet,
)

torch = pytest.importorskip("torch")
from benchmarks.torch_reference import skip_net, system000, system001, system002, system003, system004  # noqa: E402

few = settings(max_examples=2, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
widths = st.integers(1, 6)


def randomise(theirs) -> dict[str, np.ndarray]:
    """Random running statistics and norms too: at their starting values they hide mistakes."""
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim <= 1 and "sigma" not in name:
                value.add_(0.3 * torch.randn_like(value))
    return {name: value.numpy().copy() for name, value in theirs.state_dict().items()}


def compare(ours, theirs, x, t, labels, reference, extra=None) -> None:
    """Import, compare outputs in both modes and the running statistics, export, load strictly."""
    state = randomise(theirs)
    template = jax.eval_shape(lambda: ours.init(jax.random.key(0), jnp.asarray(x), t, labels))
    variables = torch_weights.import_torch(state, template)
    exported = torch_weights.export_torch(variables)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in exported.items()}, strict=True)
    picture = torch.from_numpy(x).movedim(-1, 1)
    for train in (False, True):
        with torch.no_grad():
            wanted = reference(theirs.train(train), picture).movedim(1, -1).numpy()
        output, moved = forward(ours, train)(variables, jnp.asarray(x), t, labels, extra or {})
        np.testing.assert_allclose(output, wanted, atol=2e-5 * (1 + np.abs(wanted).max()))
    after = {name: value.numpy() for name, value in theirs.state_dict().items()}
    for name, value in torch_weights.export_torch(moved).items():
        if "num_batches" not in name:
            np.testing.assert_allclose(value, after[name], atol=1e-5 * (1 + np.abs(after[name]).max()))


def pictures(seed, *shape):
    torch.manual_seed(seed)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@few
@given(seeds, st.tuples(widths, widths, widths, widths), st.sampled_from([8, 12]), st.booleans())
def test_system_000(seed, ch, side, conditional):
    x, t = pictures(seed, 2, side, 16, 1), np.array([1, 1000], np.int32)
    labels = np.array([3, 9], np.int32) if conditional else None
    theirs = system000.UNet(ch, 16, 10 if conditional else 0)
    time, classes = torch.tensor([0.0, 999.0]), None if labels is None else torch.from_numpy(labels).long()
    compare(AttentionUNet(10 if conditional else None, ch, 16), theirs, x, jnp.asarray(t), labels,
            lambda net, x: net(x, time, classes))


@few
@given(seeds, st.tuples(widths, widths, widths), st.integers(2, 40))
def test_system_001(seed, ch, steps):
    x, t = pictures(seed, 2, 28, 28, 1), np.array([1, steps], np.int32)
    theirs = system001.UNet(steps, 8, ch)
    compare(SmallUNet(steps, 8, ch), theirs, x, jnp.asarray(t), None,
            lambda net, x: net(x, torch.from_numpy(t).long() - 1))


OPTIONS = st.fixed_dictionaries({
    "act": st.sampled_from(["LeakyReLU", "Swish", "ELU", "none"]), "pad": st.sampled_from(["reflection", "zero"]),
    "downsample": st.sampled_from(["stride", "avg", "max"]), "upsample": st.sampled_from(["bilinear", "nearest"]),
    "bias": st.booleans(), "one_by_one": st.booleans(), "sigmoid": st.booleans()})
NAMES = {"LeakyReLU": "leaky_relu", "Swish": "swish", "ELU": "elu", "none": "none", "reflection": "reflect",
         "zero": "zeros"}


@settings(few, max_examples=6)
@given(seeds, st.integers(17, 24), st.integers(17, 24), st.integers(1, 2).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(low, 5), min_size=n, max_size=n) for low in (2, 2, 0)))), OPTIONS)
def test_skip_net(seed, height, width, levels, o):
    down, up, skip = map(tuple, levels)
    x = pictures(seed, 3, height, width, 2)
    theirs = skip_net.skip_net(2, 3, down, up, skip, skip_net.Style(**o))
    ours = SkipNet(3, down, up, skip, act=NAMES[o["act"]], padding=NAMES[o["pad"]], downsample=o["downsample"],
                   upsample=o["upsample"], use_bias=o["bias"], pointwise=o["one_by_one"], sigmoid=o["sigmoid"])
    compare(ours, theirs, x, None, None, lambda net, x: net(x))


@few
@given(seeds, st.lists(widths, min_size=1, max_size=4), st.integers(3, 20))
def test_system_002(seed, inner, side):
    x = pictures(seed, 1, side, side + 1, 3)
    compare(ConvStack(tuple(inner), 3), system002.ConvStack([3, *inner, 3]), x, None, None, lambda net, x: net(x))


@few
@given(seeds, st.integers(1, 4), st.sampled_from(["linear", "exponential", "cosine"]), st.integers(1, 60))
def test_system_003(seed, blocks, kind, t):
    x, noise = pictures(seed, 2, 9, 7, 3), pictures(seed + 1, blocks, 2, 9, 7, 3)
    theirs = system003.DDPM(system003.sigma_table(kind, 60), 3, blocks)
    draws = torch.from_numpy(noise).movedim(-1, 2)
    compare(ResidualDenoiser(3, blocks, kind, 60), theirs, x, jnp.full(2, t, jnp.int32), None,
            lambda net, x: net(x, t - 1, lambda b: draws[b]), {"noise": jnp.asarray(noise)})


@few
@given(seeds, st.sampled_from([8, 16]), st.sampled_from([(28, 7), (32, 8)]), st.sampled_from(["gelu", "relu"]))
def test_system_004(seed, width, size, act):
    side, kernel = size
    x, labels = pictures(seed, 2, side, side, 3), np.array([[1, 0, 1, 0], [0, 0, 0, 1]], np.float32)
    theirs = system004.ContextUnet(3, width, 4, kernel, {"gelu": torch.nn.GELU, "relu": torch.nn.ReLU}[act])
    compare(ContextUnet(4, 40, width, 3, act), theirs, x, jnp.array([1, 37]), jnp.asarray(labels),
            lambda net, x: net(x, torch.from_numpy(labels), torch.tensor([1 / 40, 37 / 40])))


@few
@given(seeds, st.integers(5, 40), st.integers(5, 40))
def test_antialiased_resize(seed, side, wanted):
    x = pictures(seed, 2, side, side, 1)
    theirs = system001.resize(torch.from_numpy(x).movedim(-1, 1), wanted).movedim(1, -1)
    np.testing.assert_allclose(filtered_start.resize(jnp.asarray(x), wanted, wanted), theirs, atol=2e-6)


def test_gradients_are_pytorchs():
    """Norm-wise, as the recordings are judged; through pools, upsampling, crops and BatchNorm."""
    x = pictures(5, 3, 17, 14, 2)
    theirs = skip_net.skip_net(2, 1, (4,), (5,), (3,), skip_net.Style("ELU", downsample="max"))
    ours = SkipNet(1, (4,), (5,), (3,), act="elu", downsample="max")
    state = randomise(theirs)
    variables = torch_weights.import_torch(state, jax.eval_shape(lambda: ours.init(jax.random.key(0), jnp.asarray(x))))
    out = theirs(torch.from_numpy(x).movedim(-1, 1))
    out.square().mean().backward()
    target = jnp.zeros(np.moveaxis(out.detach().numpy(), 1, -1).shape)
    _, _, _, gradient, _ = train_step(ours, 1e-3)(variables, jnp.asarray(x), None, None, target, {})
    wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    largest = max(np.linalg.norm(g) for g in wanted.values())
    for name, value in torch_weights.export_torch({"params": gradient}).items():
        assert np.linalg.norm(value - wanted[name]) <= 5e-4 * np.linalg.norm(wanted[name]) + 2e-6 * largest, name
