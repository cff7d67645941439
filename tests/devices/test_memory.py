"""Memory: estimates from shapes against what XLA allocates, and refusals in a line before anything is made."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax import data, devices, memory
from dipddpm_jax.commands import sizes
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.errors import UserError


@pytest.mark.parametrize("size, text", [(999, "999 bytes"), (25_276_514_304, "25.3 GB"), (3.79e17, "379 PB"),
                                        (3.2e21, "3,200,000 PB"), (0, "0 bytes"), (1e6, "1 MB")])
def test_bytes_in_words(size, text):
    assert memory.in_words(size) == text


def test_a_container_may_have_less_than_the_machine(tmp_path, monkeypatch):
    whole = memory.host_memory()
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", (tmp_path / "max", tmp_path / "absent"))
    assert 1e8 < memory.host_memory() and whole <= memory.host_memory()
    monkeypatch.setattr(memory, "CONTROL_GROUPS", (tmp_path / "max", tmp_path / "limit"))
    assert memory.host_memory() == 1e6
    memory.require(1e6, "this")
    with pytest.raises(UserError, match="^this would need about 1.01 MB of memory; there are 1 MB here$"):
        memory.require(1.01e6, "this")


def test_the_bytes_of_a_gradient_are_those_of_its_residuals():
    """Of a sine taken n times, the backward pass reads n cosines and nothing else."""
    def repeated(x, n):
        for _ in range(n):
            x = jnp.sin(x)
        return x.sum()

    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    one, five = (devices.gradient_bytes(lambda x, n=n: repeated(x, n), x) for n in (1, 5))
    assert five - one == 4 * 4e6
    assert devices.tree_bytes({"a": x, "key": jax.random.key(0), "n": None}) == 4e6


def test_the_bytes_of_a_call_are_those_that_live_at_one_time():
    """Of a sine taken n times: the argument, what is read and what is made. A value that is read last lives to then."""
    def repeated(x, n):
        first = y = jnp.sin(x)
        for _ in range(n):
            y = jnp.sin(y)
        return y, first

    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    assert devices.forward_bytes(lambda x: repeated(x, 2)[0], x) == devices.forward_bytes(
        lambda x: repeated(x, 9)[0], x) == 3 * 4e6
    assert devices.forward_bytes(lambda x: sum(repeated(x, 9)), x) == 4 * 4e6


def test_a_call_needs_about_what_xla_allocates():
    """Within a factor of two, of four convolutions whose widths differ."""
    def apply(kernels, x):
        for kernel in kernels:
            x = jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME",
                                                      dimension_numbers=("NHWC", "HWIO", "NHWC")))
        return x

    kernels = [jax.ShapeDtypeStruct((3, 3, *widths), jnp.float32) for widths in ((8, 64), (64, 64), (64, 8), (8, 8))]
    x = jax.ShapeDtypeStruct((8, 32, 32, 8), jnp.float32)
    found = jax.jit(apply).lower(kernels, x).compile().memory_analysis()
    allocated = found.temp_size_in_bytes + found.argument_size_in_bytes
    assert allocated / 2 < devices.forward_bytes(apply, kernels, x) < 2 * allocated


def test_a_training_step_needs_about_what_xla_allocates():
    """Within a factor of two of the temporary memory of the compiled gradient of a network of four convolutions."""
    def loss(kernels, x):
        for kernel in kernels:
            x = jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME",
                                                      dimension_numbers=("NHWC", "HWIO", "NHWC")))
        return jnp.square(x).mean()

    kernels, x = [jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32)] * 4, jax.ShapeDtypeStruct((8, 32, 32, 32), "f4")
    allocated = jax.jit(jax.grad(loss)).lower(kernels, x).compile().memory_analysis().temp_size_in_bytes
    assert allocated / 2 < devices.gradient_bytes(loss, kernels, x) < 2 * allocated


def test_pictures_that_no_machine_holds_are_refused_before_they_are_made():
    config = PRESETS["unet"][1]
    assert sizes.training_bytes(config, Facts((28, 28, 1))) > 1e8
    with pytest.raises(UserError, match=r"64 pictures of 1000000x1000000 would need .* PB of memory; there are .*"
                                        "--image-size or --batch-size"):
        sizes.check_training(dataclasses.replace(config, image_size=1_000_000), Facts((1_000_000, 1_000_000, 1)))
    sizes.check_training(config, Facts((28, 28, 1), tuple("0123456789")))


@pytest.mark.parametrize("make", [lambda folder: "mnist5k", lambda folder: f"folder:{folder}"])
def test_a_data_set_that_no_machine_holds_is_refused_by_its_size(tmp_path, make):
    from PIL import Image

    for i in range(10):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match=r"pictures of 1000000x1000000 would need about \S+ [TP]B of memory"):
        data.load(make(tmp_path), "train", image_size=1_000_000)
