"""Devices: what there is to compute with, meshes of them, and what they can hold."""
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dipddpm_jax import cluster, environment, memory
from dipddpm_jax.config.diffusion import RunOptions
from dipddpm_jax.convolution.cost import cores
from dipddpm_jax.errors import UserError

MOST_HOST_DEVICES = 4  # each holds its own copy of data and parameters


def set_up(run: RunOptions | None = None) -> None:
    """Before anything is computed: the environment, the devices of a CPU, and the other machines. Raises UserError."""
    environment.settle()
    if "xla_force_host_platform_device_count" not in os.environ["XLA_FLAGS"]:
        # a CPU is as many devices as one likes, and one a core computes a batch faster than one for all
        count = run.devices if run and run.devices else min(cores(), MOST_HOST_DEVICES)
        with suppress(RuntimeError):  # too late: something was computed already
            jax.config.update("jax_num_cpu_devices", count)
    if run and run.distributed:
        cluster.join(run)
    environment.check_platform()
    if run and run.distributed:
        cluster.watch_others(run)


def make_mesh(count: int | None, batch_size: int) -> Mesh:
    """The devices that share a batch; by default as many as divide it. Raises UserError when `count` do not fit."""
    devices = jax.devices()
    if count is None:
        count = next(n for n in range(len(devices), 0, -1) if batch_size % n == 0)
    if count > len(devices):
        raise UserError(f"--devices {count}: there are {len(devices)} here ({devices[0].platform})")
    if batch_size % count:
        raise UserError(f"--batch-size {batch_size} cannot be divided over {count} devices")
    return Mesh(np.array(devices[:count]), ("batch",))


def spread(batch: PyTree, whole: PyTree) -> tuple[PyTree, PyTree]:
    """`batch` split over as many of this process's devices as divide it, and `whole` copied to them."""
    devices, size = jax.local_devices(), jax.tree.leaves(batch)[0].shape[0]
    count = next(n for n in range(len(devices), 0, -1) if size % n == 0)
    mesh = Mesh(np.array(devices[:count]), ("batch",))
    return jax.device_put(batch, batch_sharding(mesh)), jax.device_put(whole, replicated(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("batch"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state: PyTree, shard: bool) -> PyTree:
    """Replicated; or with `shard`, every array's largest divisible axis over the devices (ZeRO, Rajbhandari 2020)."""

    def of(leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0 and size >= mesh.size]
        if not shard or not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "batch"))

    return jax.tree.map(of, state)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts host values, the same on every process, where they belong."""

    def put(leaf, sharding):
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf), sharding))
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: PyTree, mesh: Mesh) -> PyTree:
    """NumPy copies, gathered from all devices; every process must call it."""
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), whole)


def any_process(flag: bool) -> bool:
    """Whether any of the machines says so."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def peak_memory() -> int | None:
    """Bytes of device memory at the peak, where the back-end tells."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def check_memory(needed: int | float, what: str) -> None:
    """Raises UserError when `what`, the subject of the sentence, needs more bytes than the device (or the host) has."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit") if jax.default_backend() != "cpu" else None
    memory.require(needed, what, limit)


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, or of what has their shapes; a random key counts as nothing."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves
               if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def gradient_bytes(function: Callable[..., Any], *arguments: PyTree) -> int:
    """Bytes that the gradient of `function` by its first argument keeps between the forward and the backward pass.

    Reverse-mode differentiation stores what the backward pass reads (its residuals). They follow from the shapes of the
    arguments alone; nothing is computed. A compiler that recomputes some of them, or one that needs work space, makes
    it less or more: a bound to within a factor of two or so.
    """
    first, *rest = arguments

    def pull_back(first, rest):
        residuals = jax.tree.leaves(jax.vjp(lambda first: function(first, *rest), first)[1])
        return list({id(value): value for value in residuals}.values())  # one may be read at several places

    return tree_bytes(jax.eval_shape(pull_back, first, rest))


def forward_bytes(function: Callable[..., Any], *arguments: PyTree) -> int:
    """Bytes of the values that are needed at one time, at most, while `function` runs: each lives from where it is made
    to where it is read last.

    They follow from the shapes of the arguments alone; nothing is computed, and what the function closes over counts as
    nothing. A compiler that joins steps makes it less, one that needs work space more: a bound to within a factor of
    two or so.
    """
    program = jax.make_jaxpr(function)(*arguments).jaxpr

    def variables(values):
        return {value for value in values if not hasattr(value, "val")}  # numbers in the program have one

    def size(values) -> int:
        return sum(value.aval.size * value.aval.dtype.itemsize for value in values)

    read = {value: i for i, step in enumerate(program.eqns) for value in variables(step.invars)}
    read |= dict.fromkeys(variables(program.outvars), len(program.eqns))
    lasting = {*program.invars, *program.constvars}
    alive = most = size(program.invars)
    for i, step in enumerate(program.eqns):
        alive += size(step.outvars)
        most = max(most, alive)
        alive -= size(value for value in variables(step.invars) - lasting | variables(step.outvars)
                      if read.get(value, i) == i)
    return most
