"""Fits in chunks, spread over the devices: rows of one large picture, or the fits of a batch."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dipddpm_jax.convolution import bands
from dipddpm_jax.convolution.cost import divisor
from dipddpm_jax.dip.fit import Curves, Dip, DipProblem, DipState


def advance_one(fit: Dip, problem: DipProblem, state: DipState, num_steps: int) -> tuple[DipState, Curves]:
    """`advance` of a single fit, not for vmap: the devices of a CPU share the rows of a large picture."""
    if not bands.pays(problem.code.shape):
        return fit.advance(problem, state, num_steps)
    with bands.shared():
        return fit.advance(problem, state._replace(code=bands.banded(state.code)), num_steps)


def fits_mesh(count: int) -> Mesh:
    """The devices that share a batch of `count` fits: as many as divide it."""
    return Mesh(np.array(jax.local_devices()[:divisor(count, jax.local_device_count())]), ("fits",))


def spread_fits(batch: PyTree) -> PyTree:
    """A batch laid out as `advance_all` takes and gives it, so that one program does for all its calls."""
    mesh = fits_mesh(jax.tree.leaves(batch)[0].shape[0])
    if mesh.size == 1:
        return batch
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("fits")))


def advance_all(fit: Dip, problems: DipProblem, states: DipState, num_steps: int) -> tuple[DipState, Curves]:
    """`advance` for a batch. On a CPU every device has its share, one fit after the other, and those that have
    stopped cost nothing; elsewhere all at once, the stopped ones included. Which, is decided when it is lowered.

    The devices of a CPU exchange nothing: their fits take unequal times, and XLA ends a process in which one device
    waits too long for another in a collective."""
    mesh = fits_mesh(states.step.shape[0])
    one = jax.jit(partial(advance_one if mesh.size == 1 else Dip.advance, fit, num_steps=num_steps), inline=True)

    def idle(problem, state):
        shapes = jax.eval_shape(one, problem, state)[1]
        return state, jax.tree.map(lambda curve: jnp.zeros(curve.shape, curve.dtype), shapes)

    def share(problems, states):
        return jax.lax.map(lambda fit: jax.lax.cond(fit[1].stopped, idle, one, *fit), (problems, states))

    fits = PartitionSpec("fits")
    shares = share if mesh.size == 1 else jax.shard_map(
        share, mesh=mesh, in_specs=fits, out_specs=fits, check_vma=False)
    return jax.lax.platform_dependent(problems, states, cpu=shares, default=jax.vmap(one))
