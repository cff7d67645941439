"""Two sets of features compared without Gaussians: the sliced Wasserstein distance, and precision and recall.

These two tell apart samples that look wrong from real pictures that no sample looks like.

On the host, in float64, one row a picture; both are steady at a thousand rows already, where the FD is not.
"""
import numpy as np
from jaxtyping import Bool, Float, Float64

DIRECTIONS = 128
NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 2


def sliced_wasserstein(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], directions: Float[np.ndarray, "k d"]
) -> float:
    """Root mean square, over directions of length 1, of the 2-Wasserstein distance between the projections of both sets
    (Bonneel et al. 2015, eq. 6): in one dimension the root mean square difference of the quantile functions, exact here
    for sets of any two sizes. Raises ValueError for an empty set."""
    if not min(len(a), len(b)):
        raise ValueError("a distance of sets needs at least one row in each")
    marks = np.union1d(np.arange(len(a) + 1) * len(b), np.arange(len(b) + 1) * len(a))  # of len(a) * len(b)
    rows_a, rows_b, shares = marks[:-1] // len(b), marks[:-1] // len(a), np.diff(marks) / marks[-1]
    sorted_a, sorted_b = (np.sort(x.astype(np.float64) @ directions.T, axis=0) for x in (a, b))
    return float(np.sqrt((shares[:, None] * (sorted_a[rows_a] - sorted_b[rows_b]) ** 2).sum(0).mean()))


def random_directions(rng: np.random.Generator, size: int, count: int = DIRECTIONS) -> Float64[np.ndarray, "k d"]:
    """Directions of length 1 in `size` dimensions, spread evenly over the sphere."""
    drawn = rng.standard_normal((count, size))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def precision_recall(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """(precision, recall), Kynkäänniemi et al. 2019, eqs. 1 and 2: the share of samples inside the real manifold, and
    of real rows inside that of the samples.

    A set's manifold is the union of the balls around its rows, each reaching to the row's k-th nearest other row. Both
    fall with the numbers of rows: compare at equal ones. Raises ValueError for k rows or fewer.
    """
    if min(len(samples), len(real)) <= neighbours:
        raise ValueError(f"manifolds of {neighbours} neighbours need more rows; got {len(samples)} and {len(real)}")
    samples, real = samples.astype(np.float64), real.astype(np.float64)
    between = _squared_distances(samples, real)
    return (float(_inside(between, _reach(real, neighbours)).mean()),
            float(_inside(between.T, _reach(samples, neighbours)).mean()))


def _squared_distances(a: Float64[np.ndarray, "n d"], b: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0)


def _reach(rows: Float64[np.ndarray, "n d"], neighbours: int) -> Float64[np.ndarray, "n"]:
    """Squared distance of each row to its k-th nearest other row."""
    distances = _squared_distances(rows, rows)
    np.fill_diagonal(distances, 0)
    return np.partition(distances, neighbours, axis=1)[:, neighbours]  # place 0 is the row itself


def _inside(distances: Float64[np.ndarray, "n m"], reach: Float64[np.ndarray, "m"]) -> Bool[np.ndarray, "n"]:
    return (distances <= reach[None]).any(1)
