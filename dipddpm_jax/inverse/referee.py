"""Chooses among restorers, and averages them, for one picture and without the clean one.

Every restorer is a black box. It is given one part of the measurement, and judged by another whose noise is independent
(`inverse.splitting`); the weights of the average are least squares on that other part.
"""
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.splitting import Split, split_noise

MOST = 12  # restorers whose subsets are all tried


class Choice(NamedTuple):
    """What the referee says of each restorer: its estimated mean squared error of A x, and its weight in the average;
    `stack_error` is the average's own estimate."""

    errors: dict[str, float]
    weights: dict[str, float]
    stack_error: float

    @property
    def best(self) -> str:
        return min(self.errors, key=self.errors.get)


def recommend(
    restorers: Mapping[str, Restore], measurement: Measurement, key: Key[Array, ""], draws: int = 1,
    split: Split = split_noise,
) -> Choice:
    """Judges every restorer on `draws` splits of the measurement; each costs one restoration by each of them.

    error_j = mean |A r_j(y1) - y2|^2 - var(y2); the weights w, w_j >= 0 of sum 1, minimise
    mean |A sum_j w_j r_j(y1) - y2|^2. y1 is noisier than y, so that the errors are those at a slightly higher noise.
    Raises UserError as `split` does, and for no restorers or more than 12.
    """
    if not 0 < len(restorers) <= MOST:
        raise UserError(f"the referee compares 1 to {MOST} restorers; got {len(restorers)}")
    products, variance = np.zeros((len(restorers),) * 2), 0.0
    for draw in range(draws):
        split_key, run_key = jax.random.split(jax.random.fold_in(key, draw))
        halves = split(measurement, split_key)
        judged = np.asarray(halves.weight) > 0
        wrong = []
        for i, restore in enumerate(restorers.values()):
            picture = restore(halves.seen, jax.random.fold_in(run_key, i)).picture
            wrong.append(np.asarray(halves.operator.forward(picture) - halves.kept, np.float64)[judged])
        products += np.array(wrong) @ np.array(wrong).T / judged.sum() / draws
        variance += float(halves.variance) / draws
    weights = convex_weights(products)
    return Choice(dict(zip(restorers, (np.diag(products) - variance).tolist())), dict(zip(restorers, weights.tolist())),
                  float(weights @ products @ weights) - variance)


def convex_weights(products: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """The weights w >= 0 of sum 1 that minimise w^T P w, exactly: of every subset the unconstrained solution
    P^-1 1 / (1^T P^-1 1) is tried. On the host."""
    count, best = len(products), (np.inf, np.zeros(0))
    for size in range(1, count + 1):
        for chosen in map(list, combinations(range(count), size)):
            found = np.linalg.lstsq(products[np.ix_(chosen, chosen)], np.ones(size), rcond=None)[0]
            if not np.isfinite(found).all() or found.min() < 0 or found.sum() <= 0:
                continue
            weights = np.zeros(count)
            weights[chosen] = found / found.sum()
            best = min(best, (float(weights @ products @ weights), weights), key=lambda pair: pair[0])
    return best[1]


def stacked(restorers: Mapping[str, Restore], draws: int = 1, split: Split = split_noise) -> Restore:
    """The restorer sum_j w_j r_j(y) with the referee's weights; restorers without weight are not run again."""
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        judge_key, run_key = jax.random.split(key)
        choice = recommend(restorers, measurement, judge_key, draws, split)
        picture, steps, calls = 0.0, 0, 0
        for i, (name, one) in enumerate(restorers.items()):
            if choice.weights[name] > 0:
                found = one(measurement, jax.random.fold_in(run_key, i))
                picture = picture + jnp.asarray(choice.weights[name], found.picture.dtype) * found.picture
                steps, calls = steps + found.evidence.steps, calls + found.evidence.calls
        return Restoration(picture, None, Cost(calls, steps, choice.stack_error, choice.weights))

    return restore


def chosen(restorers: Mapping[str, Restore], draws: int = 1, split: Split = split_noise) -> Restore:
    """The restorer that the referee likes best, for every picture anew."""
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        judge_key, run_key = jax.random.split(key)
        choice = recommend(restorers, measurement, judge_key, draws, split)
        found = restorers[choice.best](measurement, run_key)
        return found._replace(evidence=found.evidence._replace(error=choice.errors[choice.best]))

    return restore
