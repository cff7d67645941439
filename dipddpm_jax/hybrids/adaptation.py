"""The prior adapted to the picture: the denoiser's own weights are fitted to what was measured, between reverse steps.

Steerable conditional diffusion (Barbano et al. 2023) and the deep diffusion image prior (Chung and Ye 2024): a network
that was trained on other pictures learns this one while its chains run, as a deep image prior would from nothing. All
weights are learned, in a few steps at a small rate, where the papers learn a low-rank part.
"""
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dipddpm_jax.diffusion import spacings
from dipddpm_jax.dip.crossfit import observed_pixels
from dipddpm_jax.dip.folds import fold_masks
from dipddpm_jax.hybrids.pigdm import guided_step, matched_variance
from dipddpm_jax.hybrids.prior import (
    DiffusionPrior,
    Learned,
    Step,
    Task,
    Transition,
    grid_from,
    restorer,
)
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import Gaussian
from dipddpm_jax.types import Images

SCOUTS = 2**31 - 1  # fold_in constant of the scouts' keys: no time reaches it
MATCHED = guided_step(matched_variance)


def adapted(
    prior: DiffusionPrior, calls: int = 50, samples: int = 1, updates: int = 3, rate: float = 1e-4, folds: int = 10,
    scouts: int = 4, step: Step = MATCHED,
) -> Restore:
    """Chains of `step`, before each of which `updates` of Adam lower mean |A x0_theta(x_t, t) - y|^2.

    One in `folds` of the measured pixels is never fitted, nor seen by the `scouts`, a few more chains whose clean
    pictures the loss compares with y. Of the weights that were trained, those of the last time, and those after each
    update, the ones with the lowest error there take the step. The restored chains take it too and see all of y;
    without updates they are those of `hybrids.prior.reverse`. Raises UserError for a prior without weights.
    """
    learned = prior.weights()
    # As an argument, weights are not constants that XLA folds for minutes.
    denoise = jax.tree_util.Partial(lambda params, x, t: learned.denoiser(params)(x, t), learned.params)
    grid = grid_from(prior, spacings.start_time(prior.schedule), calls)

    def method(task: Task, rows: Transition) -> Images:
        start = learned._replace(params=task.denoise.args[0])
        keys = jax.random.split(jax.random.fold_in(task.keys[0], SCOUTS), scouts if updates else 0)
        held = held_out_part(task, jax.random.fold_in(task.keys[0], SCOUTS), folds)
        seen = jnp.concatenate([jnp.ones((samples, *held.shape)), jnp.tile(1 - held, (len(keys),) + (1,) * held.ndim)])
        both = task._replace(keys=jnp.concatenate([task.keys, keys]), seen=seen if updates else None)

        def transition(carry: tuple[PyTree, Images], c: Transition) -> tuple[tuple[PyTree, Images], None]:
            params, x = carry
            if updates:
                params = _fitted(start, params, x[samples:], c, task, held, updates, rate)
            return (params, step(both._replace(denoise=learned.denoiser(params)), x, c)), None

        begun = start.params, both.normal(rows.t[0])
        return jax.lax.scan(transition, begun, rows)[0][1][:samples]

    inner = restorer(prior._replace(denoise=denoise), method, lambda sigma: grid, samples)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        found = inner(measurement, key)
        more = scouts * (len(grid) - 1) * (updates + 3) if updates else 0
        cost = found.evidence._replace(calls=found.evidence.calls + more, steps=updates * (len(grid) - 1))
        return found._replace(evidence=cost)

    return restore


def held_out_part(task: Task, key: Key[Array, ""], folds: int) -> Float[Array, "p q 1"]:
    """1 for one in `folds` of the places where y says something of the picture, else 0."""
    known = observed_pixels(Measurement(task.y, task.operator, Gaussian(0.0)), key)
    return fold_masks(key, known, folds)[0]


def _fitted(
    start: Learned, params: PyTree, x: Images, c: Transition, task: Task, held: Float[Array, "p q 1"], updates: int,
    rate: float,
) -> PyTree:
    """The weights with the lowest held-out error on the scouts' pictures at one time."""
    optimizer = optax.adam(rate)

    def errors(params: PyTree) -> tuple[Array, Array]:
        x0 = task.pixels.to_pixels(start.denoiser(params)(x, c.t).x0)
        wrong = jnp.square(jax.vmap(task.operator.forward)(x0) - task.y[None]).mean((0, -1))[..., None]
        return jnp.mean((1 - held) * wrong), jnp.sum(held * wrong) / jnp.maximum(held.sum(), 1)

    def better(best, params, error):
        return jax.tree.map(lambda new, old: jnp.where(error < best[1], new, old), (params, error), best)

    def update(carry, _):
        params, state, best = carry
        (_, error), gradient = jax.value_and_grad(errors, has_aux=True)(params)
        change, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, change), state, better(best, params, error)), None

    begun = params, optimizer.init(params), (start.params, errors(start.params)[1])
    (last, _, best), _ = jax.lax.scan(update, begun, length=updates)
    return better(best, last, errors(last)[1])[0]
