"""Every program that takes time, compiled for TPUs that are not here (libtpu compiles without one), and lowered for
NVIDIA GPUs: what the devices exchange, what each of them holds, and how the work is divided.

Networks are narrow, since a compilation takes seconds; the same programs at full size: benchmarks/accelerators.py.
"""
import math
import os
from dataclasses import replace
from importlib.util import find_spec

import jax
import pytest
from jax import export

from benchmarks import hot_paths
from dipddpm_jax.config.diffusion import OptimizerConfig, ScheduleConfig, TrainConfig, UNet
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.judging.judges import Judge
from dipddpm_jax.networks.classifier import Classifier

CONFIG = TrainConfig(UNet(width=8, multipliers=(1,), blocks=1, attention_size=0), ScheduleConfig(num_steps=20),
                     OptimizerConfig(decay="constant"), SamplerConfig("ddim", num_steps=3, guidance=1.0),
                     batch_size=16, image_size=8)
FACTS = Facts((8, 8, 1), ("even", "odd"), count=64)
FIT = DipConfig(network="conv", num_steps=10)
JUDGE = Judge("narrow", Classifier(2, (4, 8)), None, 0.5, (8, 8, 1), ("even", "odd"))
needs_libtpu = pytest.mark.skipif(
    not (find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")),
    reason="libtpu, which compiles for TPUs on any machine, is not installed: pip install -e '.[tpu]'")


@pytest.fixture(autouse=True)
def own_devices():
    with hot_paths.as_one_device():
        yield


@pytest.fixture(scope="module")
def four():
    return hot_paths.tpu_mesh(4)


def paths(mesh):
    """What takes time, by name."""
    return {
        "training": lambda: hot_paths.training(CONFIG, FACTS, mesh, 2),
        "training in bfloat16": lambda: hot_paths.training(replace(CONFIG, compute="bfloat16"), FACTS, mesh, 2),
        "sampling": lambda: hot_paths.sampling(CONFIG, FACTS, mesh, 8, CONFIG.sampler),
        "one fit": lambda: hot_paths.fitting(FIT, 16, mesh, 1, 2),
        "a batch of fits": lambda: hot_paths.fitting(FIT, 16, mesh, 8, 2),
        "judging": lambda: hot_paths.judging(JUDGE, mesh, 16),
    }


NAMES = list(paths(None))


def compiled(path):
    return path.function.lower(*path.arguments).compile()


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def share(program, undivided):
    """Operations of one device over those of the same program for a single one; a loop's body counts once in both."""
    alone = undivided.function.trace(*undivided.arguments).lower(lowering_platforms=("tpu",))
    return program.cost_analysis()["flops"] / alone.cost_analysis()["flops"]


def assert_lies_as_asked(program, path):
    """No argument of the compiled program is copied to all devices that was to be divided, and the other way round."""
    asked, given = (jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)
                    for tree in (path.arguments, program.input_shardings[0]))
    compared = [sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
                for leaf, sharding in zip(asked, given, strict=True) if leaf is not None and sharding is not None]
    assert all(compared) and len(compared) > len(asked) / 2  # None: an argument that the program does not read


@needs_libtpu
@pytest.mark.parametrize("name", NAMES)
def test_a_slice_of_four_chips_exchanges_a_gradient_at_most_and_divides_the_work(four, name):
    path = paths(four)[name]()
    program = compiled(path)
    exchanged = hot_paths.exchanged(program.as_text())
    if "training" in name:  # gradients and the loss
        assert list(exchanged) == ["all-reduce"]
        assert exchanged["all-reduce"] < 1.1 * bytes_of(path.arguments[0].params)
    else:
        assert exchanged == {}
    if name != "one fit":
        assert share(program, paths(hot_paths.own_mesh())[name]()) < 0.4
    memory = program.memory_analysis()
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes < 16 * 2**30
    assert_lies_as_asked(program, path)


@needs_libtpu
def test_a_sharded_state_is_a_quarter_on_each_of_four_chips(four):
    path = hot_paths.training(CONFIG, FACTS, four, 2, shard_state=True)
    assert_lies_as_asked(compiled(path), path)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(path.arguments[0]))
    assert held < 0.3 * bytes_of(path.arguments[0])  # a few small arrays stay whole


@needs_libtpu
def test_a_slice_of_many_hosts_exchanges_the_gradient_alone():
    many, alone = (hot_paths.training(replace(CONFIG, batch_size=256), replace(FACTS, count=512), mesh, 1)
                   for mesh in (hot_paths.tpu_mesh(256), hot_paths.own_mesh()))
    program = compiled(many)
    assert list(hot_paths.exchanged(program.as_text())) == ["all-reduce"]
    assert share(program, alone) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_one_portable_program_for_every_platform(name):
    path = paths(hot_paths.own_mesh())[name]()
    program = export.export(path.function, platforms=["cuda", "tpu", "cpu"])(*path.arguments)
    assert program.platforms == ("cuda", "tpu", "cpu") and program.nr_devices == 1
    text = export.export(path.function, platforms=["cuda"])(*path.arguments).mlir_module()
    assert "stablehlo.convolution" in text  # plain ones: those of a CPU are products of matrices
