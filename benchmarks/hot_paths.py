"""The programs that take nearly all of the time, as the commands build them, for devices that need not be there.

Each is a `HotPath`: a jitted function and abstract arguments that say where they lie. So one can be compiled for a TPU
or exported for a GPU on any machine, and be asked what it would cost and exchange.
"""
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dipddpm_jax import devices
from dipddpm_jax.commands import builders, fits, model, train
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.dip import DipProblem, advance_all
from dipddpm_jax.judging import judges

SLICES = {4: ("v5e:2x2", "v5litepod-4"), 256: ("v5e:16x16", "v5litepod-256")}  # chips: (topology, accelerator type)
COLLECTIVE = re.compile(r"^.*? = (.+?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
                        r"(?:-start)?\(", re.MULTILINE)
BYTES = {"s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "s8": 1, "pred": 1}


class HotPath(NamedTuple):
    """A jitted function, its arguments as shapes with shardings, and how many units of work one call does."""

    name: str
    function: Callable
    arguments: tuple
    units: int  # of one call: training steps, network evaluations of a batch, DIP iterations, batches of pictures
    unit: str


def tpu_mesh(chips: int) -> Mesh:
    """The chips of a v5e slice that need not be there, in a row. Raises an error where libtpu is absent."""
    topology, kind = SLICES[chips]
    os.environ.update(TPU_ACCELERATOR_TYPE=kind, TPU_WORKER_HOSTNAMES="localhost", TPU_SKIP_MDS_QUERY="1")
    return Mesh(np.array(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices), ("batch",))


def own_mesh() -> Mesh:
    """One device of this process."""
    return Mesh(np.array(jax.devices()[:1]), ("batch",))


@contextmanager
def as_one_device() -> Iterator[None]:
    """This process's own devices left out of account: else they become part of the programs for others. And without the
    cache of compiled programs, from which one for absent devices is not read."""
    cached = jax.config.jax_enable_compilation_cache
    with mock.patch.object(jax, "local_device_count", lambda *_: 1):
        jax.config.update("jax_enable_compilation_cache", False)
        try:
            yield
        finally:
            jax.config.update("jax_enable_compilation_cache", cached)


def placed(tree: PyTree, shardings: Any) -> PyTree:
    """Shapes of a tree, lying where `shardings` (one, or a tree of them) say."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def keys_like(count: int) -> PyTree:
    """That many random keys, as shapes."""
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))


def training(config: TrainConfig, facts: Facts, mesh: Mesh, length: int, shard_state: bool = False) -> HotPath:
    """A chunk of training steps of `train.py`, the data set on every device."""
    network = builders.make_network(config.network, facts, config.schedule.num_steps)
    state = jax.eval_shape(lambda: builders.make_state(config, network, facts))
    shardings = devices.state_shardings(mesh, state, shard_state)
    chunk, _ = train.make_program(config, network, mesh, shardings, length)
    whole = devices.replicated(mesh)
    images = jax.ShapeDtypeStruct((facts.count, *facts.image_shape), jnp.uint8, sharding=whole)
    labels = None if not facts.label_names else jax.ShapeDtypeStruct((facts.count,), jnp.int32, sharding=whole)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    name = f"training step, batch {config.batch_size}, {config.compute}" + ", state sharded" * shard_state
    return HotPath(name, chunk, (placed(state, shardings), images, labels, count), length, "step")


def sampling(config: TrainConfig, facts: Facts, mesh: Mesh, batch: int, sampler: SamplerConfig) -> HotPath:
    """The whole chain of `sample.py`, the batch spread over the devices."""
    network, shapes = model.abstract_model(config, facts)
    across, whole = devices.batch_sharding(mesh), devices.replicated(mesh)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=across) if facts.label_names else None
    grid = builders.sampling_grid(sampler, builders.make_schedule(config.schedule))
    chain = partial(model.draw_batch, config=config, facts=facts, network=network,
                    sampler=replace(sampler, guidance=float(sampler.guidance != 0)), most=0, num_frames=0)
    arguments = placed(shapes, whole), placed(keys_like(batch), across), labels, jax.ShapeDtypeStruct(
        (), jnp.float32, sharding=whole)
    return HotPath(f"sampling, {sampler.name}, batch {batch}", jax.jit(chain), arguments, len(grid) - 1, "time")


def fitting(config: DipConfig, side: int, mesh: Mesh, count: int, length: int) -> HotPath:
    """A chunk of `train.py dip`: `count` fits, spread over the devices."""
    fit = fits.make_fit(config, 3, (side, side))
    code = fits.make_code(config, jax.random.key(0), np.zeros((side, side, 3), np.float32),
                          np.ones((side, side, 1), np.float32), (side, side))

    def many(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), jnp.float32)

    problems = DipProblem(many(*code.shape), many(side, side, 3), held_out=many(side, side, 1), sigma=many())
    states = jax.eval_shape(jax.vmap(fit.init), problems, keys_like(count))
    mesh = Mesh(mesh.devices[: count if count < mesh.size else mesh.size], ("fits",))
    across = NamedSharding(mesh, PartitionSpec("fits"))
    name = f"DIP iteration, {config.network}, {count} picture{'s' * (count > 1)} of {side}x{side}"
    return HotPath(name, jax.jit(partial(advance_all, fit, num_steps=length)),
                   (placed(problems, across), placed(states, across)), length, "iteration")


def judging(judge: judges.Judge, mesh: Mesh, batch: int) -> HotPath:
    """What `dipddpm-jax evaluate` asks a judge: features and logits of a batch."""
    weights = judges.template(judge.network, judge.image_shape)
    looking = partial(judges._outputs, judge.network, judge.image_shape[:2])
    images = jax.ShapeDtypeStruct((batch, *judge.image_shape), jnp.uint8, sharding=devices.batch_sharding(mesh))
    return HotPath(f"judge, batch {batch}", jax.jit(looking),
                   (placed(weights, devices.replicated(mesh)), images), 1, "batch")


def exchanged(text: str) -> dict[str, int]:
    """Bytes of the results of every kind of collective in compiled HLO; those of a loop's body once."""
    found: dict[str, int] = {}
    for shapes, kind in COLLECTIVE.findall(text):
        for element, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            count = math.prod(int(size) for size in sizes.split(",") if size)
            found[kind] = found.get(kind, 0) + count * BYTES[element]
    return found
