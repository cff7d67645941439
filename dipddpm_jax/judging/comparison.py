"""Two sets of pictures compared in a judge's features: distances, how far real pictures are from one another, spreads.

The standard deviation over fresh draws comes from the distance's influence function (its derivative with respect to one
picture's weight), as in the delta method. Near 0 a distance is quadratic in the means of features, and the influence
function then finds twice the variance (Efron and Stein 1981: so does the jackknife; a bootstrap finds four times and
more). That half is known, since splits of the real pictures show the variance of two sets that do not differ.
"""
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int, UInt8

from dipddpm_jax.errors import UserError
from dipddpm_jax.judging import coverage, metrics
from dipddpm_jax.judging.judges import Judge, look, one_hot

KERNEL_ROWS = 2000  # at most so many pictures of a set are compared by the kernel and the sliced Wasserstein distance
MANIFOLD_ROWS = 1000  # and by precision and recall
Classes = Int[np.ndarray, "_"] | None


def compare(
    judge: Judge, samples: UInt8[np.ndarray, "n h w c"], real: UInt8[np.ndarray, "m h w c"], labels: Any = None,
    seed: int = 0, splits: int = 20, real_labels: Any = None,
) -> dict[str, Any]:
    """How far samples are from real pictures in the judge's features; `labels` are those asked of the samples.

    `fd` (Frechet) and `kid` (kernel) compare n samples with `reference` real pictures: n is halved if need be. `floor`
    and `kid_floor` are means over `splits` of n real pictures in the samples' place; where both sets have one class a
    picture (`labels`, `real_labels`) these have the samples' classes ("floor_classes": "as asked"), since samples of
    equal shares are nearer than chance allows; else they are drawn at random ("at random"). `spread` and
    `floor_spread` are standard deviations over fresh draws (None with fewer than 2 splits). `sliced_wasserstein`,
    `precision` and `recall` have a floor each, and its standard deviation over the splits. UserError for too few.
    """
    n = min(len(samples), len(real) // 2)
    if n < 2:
        raise UserError(f"{len(samples)} samples and {len(real)} real pictures are too few to compare")
    rng = np.random.default_rng(seed)
    seen, found = look(judge, samples)
    real_seen, real_found = look(judge, real)
    first = rng.permutation(len(real))
    chosen = np.sort(rng.permutation(len(seen))[:n])
    asked, known = (None if a is None or np.ndim(a) != 1 else np.asarray(a) for a in (labels, real_labels))
    if asked is None or known is None:
        asked = known = None
    result = {
        "judge": judge.name, "judge_accuracy": None if np.isnan(judge.accuracy) else judge.accuracy,
        "n": n, "samples": len(samples), "reference": len(real) - n, "dimensions": seen.shape[1],
        **compare_features(seen[chosen], real_seen, rng, splits, None if asked is None else asked[chosen], known,
                           first),
        "floor_classes": "at random" if asked is None else "as asked", "splits": splits,
        "histogram": histogram(judge, found), "real_histogram": histogram(judge, real_found),
        "mean_confidence": confidence(judge, found), "real_mean_confidence": confidence(judge, real_found),
        "seed": seed,
    }
    if labels is not None:
        wanted = one_hot(labels, len(judge.label_names))
        result["label_accuracy"] = metrics.label_accuracy(found, wanted)
        shares = metrics.label_accuracies(found, wanted)
        result["label_accuracies"] = {name: float(share) for name, share in zip(judge.label_names, shares)
                                      if np.isfinite(share)}
    return result


def compare_features(
    seen: Float64[np.ndarray, "n d"], real: Float64[np.ndarray, "m d"], rng: np.random.Generator, splits: int = 20,
    asked: Classes = None, known: Classes = None, first: Int[np.ndarray, "m"] | None = None,
) -> dict[str, float | None]:
    """`fd`, `kid`, their floors and spreads as `compare` explains them, of features; `asked` and `known` are the
    classes of both sets, `first` the order of the real ones in the first split."""
    n = len(seen)
    orders = [split_as(asked, known, rng.permutation(len(real)) if i or first is None else first)
              for i in range(max(splits, 1))]
    rest = orders[0][n:]
    classes = (asked, None if known is None else known[rest])
    found: dict[str, float | None] = {}
    for name, most, distance, influence in (("fd", None, metrics.frechet_distance, metrics.frechet_influence),
                                            ("kid", KERNEL_ROWS, metrics.kernel_distance, metrics.kernel_influence)):
        prefix, (a, b) = "" if name == "fd" else "kid_", (seen[:most], real[rest][:most])
        null = [distance(real[order[:n]][:most], real[order[n:]][:most]) for order in orders]
        found |= {name: distance(a, b), f"{prefix}floor": float(np.mean(null)), f"{prefix}spread": None,
                  f"{prefix}floor_spread": None}
        if splits > 1:
            variance = float(np.var(null, ddof=1))
            found[f"{prefix}spread"] = _spread(influence, a, b, tuple(
                None if kind is None else kind[:most] for kind in classes), variance)
            found[f"{prefix}floor_spread"] = variance**0.5
    return found | _without_gaussians(seen, real[rest], [(real[order[:n]], real[order[n:]]) for order in orders])


Sets = tuple[Float64[np.ndarray, "n d"], Float64[np.ndarray, "m d"]]


def _without_gaussians(
    seen: Float64[np.ndarray, "n d"], real: Float64[np.ndarray, "m d"], splits: list[Sets]
) -> dict[str, float | None]:
    """Sliced Wasserstein distance, precision and recall; floors are means over splits of the real ones."""
    directions = coverage.random_directions(np.random.default_rng(0), seen.shape[1])

    def measured(a, b):
        rows = min(len(a), len(b), MANIFOLD_ROWS)
        both = (coverage.precision_recall(a[:rows], b[:rows]) if rows > coverage.NEIGHBOURS else (np.nan, np.nan))
        return (coverage.sliced_wasserstein(a[:KERNEL_ROWS], b[:KERNEL_ROWS], directions), *both)

    names = ("sliced_wasserstein", "precision", "recall")
    found, null = measured(seen, real), np.array([measured(*sets) for sets in splits])
    spreads = null.std(0, ddof=1) if len(null) > 1 else np.full(len(names), np.nan)
    return {key: float(value) if np.isfinite(value) else None for name, *values in zip(
        names, found, null.mean(0), spreads) for key, value in zip(
        (name, f"{name}_floor", f"{name}_floor_spread"), values)}


def _spread(influence: Callable, a: Any, b: Any, classes: tuple[Classes, Classes], null: float) -> float:
    """Standard deviation of a distance over draws of both sets; `null` is its variance for sets that do not differ."""
    linear = sum(_variance_of_mean(values, kind) for values, kind in zip(influence(a, b), classes))
    return max(linear - null, null) ** 0.5


def _variance_of_mean(values: Float64[np.ndarray, "n"], classes: Classes) -> float:
    """Variance of a mean of independent values; where classes have fixed numbers, only variance within them counts."""
    if classes is None:
        return float(values.var(ddof=1) / len(values))
    groups = [values[classes == kind] for kind in np.unique(classes)]
    return float(sum(len(group) * group.var(ddof=1) for group in groups if len(group) > 1) / len(values) ** 2)


def split_as(asked: Classes, known: Classes, order: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
    """An order of the real pictures whose first len(asked) have the classes `asked`, otherwise as `order` has them.

    Of a class with too few real pictures all are taken, and others fill the places.
    """
    if asked is None or known is None:
        return order
    place = np.empty(len(order), np.int64)  # how many of its class come before a picture
    kinds, index = np.unique(known[order], return_inverse=True)
    for i in range(len(kinds)):
        mine = index == i
        place[mine] = np.arange(mine.sum())
    wanted = np.array([(asked == kind).sum() for kind in kinds])
    probe = place < wanted[index]
    lacking = len(asked) - probe.sum()
    probe[np.flatnonzero(~probe)[:lacking]] = True
    return np.concatenate([order[probe], order[~probe]])


def histogram(judge: Judge, found: Float[np.ndarray, "n k"]) -> dict[str, float]:
    """Share of pictures that the judge takes for each class (or says to show each object: probability over 0.5)."""
    named = found > 0.5 if judge.several else one_hot(found.argmax(1), found.shape[1])
    return {name: float(share) for name, share in zip(judge.label_names, named.mean(0))}


def confidence(judge: Judge, found: Float[np.ndarray, "n k"]) -> float | None:
    """Mean probability of the class chosen (or of the objects said to be shown; None if there are none)."""
    chosen = found[found > 0.5] if judge.several else found.max(1)
    return float(chosen.mean()) if chosen.size else None
