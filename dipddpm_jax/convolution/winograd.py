"""3x3 convolutions with 2.25 times fewer multiplications: F(2x2, 3x3) of Lavin and Gray 2016, section 4.1.

Of every 4x4 tile of the input (tiles overlap by two) come 2x2 pixels of the output: Y = A' [(G k G') * (B' d B)] A.
The product in the middle is, for each of 16 places in a tile, one product of matrices over all tiles. What is kept is
16 numbers a tile and channel, so tiles are taken in pieces that stay in a core's cache. In float32 a result differs
from the plain convolution by some 1e-6 of the largest value.
"""
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dipddpm_jax.convolution.cost import divisor
from dipddpm_jax.types import Features, Images

PIECE_BYTES = 1_600_000  # of transformed tiles, input and output, at once

# Rows of the transforms as (place, sign): all entries but those of G are 0, 1 and -1.
INPUT = (((0, 1), (2, -1)), ((1, 1), (2, 1)), ((2, 1), (1, -1)), ((1, 1), (3, -1)))  # B'
OUTPUT = (((0, 1), (1, 1), (2, 1)), ((1, 1), (2, -1), (3, -1)))  # A'
GRADIENT = (((0, 1),), ((0, 1), (1, 1)), ((0, 1), (1, -1)), ((1, -1),))  # A
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
KERNEL = np.kron(G, G)  # G k G' = this @ k, written as columns


def correlate(x: Images, kernel: Float[Array, "3 3 c o"]) -> Features:
    """The unpadded cross-correlation with stride 1; the sides of x must be even and at least 4."""
    n, h, w, c = x.shape
    o, rows, columns = kernel.shape[-1], h // 2 - 1, w // 2 - 1
    pictures, lines = _piece(n, rows, columns, c + o)
    weights = (KERNEL @ kernel.reshape(9, c * o)).reshape(16, c, o)

    def one_piece(part, following):
        transformed = _transform(_tile(part, lines, columns), INPUT)
        products = lax.dot_general(transformed, weights, (((2,), (1,)), ((0,), (0,))))
        products = products.reshape(4, 4, pictures, lines, columns, o)
        y = [[_combine(lambda i, j: products[i, j], a, b) for b in OUTPUT] for a in OUTPUT]
        y = jnp.stack([jnp.stack(row, 3) for row in y], 2).reshape(pictures, 2 * lines, 2 * columns, o)
        return _part(x, following, pictures, lines, 2), y

    # The next part is cut out before its turn: as a value of the loop it is stored, where XLA would else work its
    # place out anew for every number of every transform.
    y = lax.scan(one_piece, _part(x, 0, pictures, lines, 2), _following(n // pictures * (rows // lines)))[1]
    return y.reshape(n, 2 * rows, 2 * columns, o)


def kernel_gradient(x: Images, g: Float[Array, "b i j o"]) -> Float[Array, "3 3 c o"]:
    """The gradient of `correlate` to its kernel, for the gradient g to its result."""
    n, h, w, o = g.shape
    c, rows, columns = x.shape[-1], h // 2, w // 2
    pictures, lines = _piece(n, rows, columns, c + o)

    def parts(i):
        return _part(x, i, pictures, lines, 2), _part(g, i, pictures, lines, 0)

    def one_piece(carry, following):
        (part, part_g), total = carry
        transformed = _transform(_tile(part, lines, columns), INPUT)
        pixels = part_g.reshape(pictures, lines, 2, columns, 2, o)
        transformed_g = _transform(lambda i, j: pixels[:, :, i, :, j], GRADIENT)
        pair = (transformed_g, transformed) if o <= c else (transformed, transformed_g)  # the thinner first: measured
        total += lax.dot_general(*pair, (((1,), (1,)), ((0,), (0,))))
        return (parts(following), total), None

    start = (parts(0), jnp.zeros((16, min(c, o), max(c, o)), x.dtype))
    total = lax.scan(one_piece, start, _following(n // pictures * (rows // lines)))[0][1]
    if o <= c:
        total = total.transpose(0, 2, 1)
    return (KERNEL.T @ total.reshape(16, c * o)).reshape(3, 3, c, o)


def _piece(n: int, rows: int, columns: int, channels: int) -> tuple[int, int]:
    """How many pictures, and how many rows of tiles of each, make a piece."""
    most = max(PIECE_BYTES // (16 * 4 * channels), columns)
    lines = divisor(rows, most // columns)
    return (divisor(n, most // (rows * columns)) if lines == rows else 1), lines


def _part(x: Images, i: int | Array, pictures: int, lines: int, overlap: int) -> Float[Array, "p _ _ c"]:
    """Piece i of x: `lines` rows of tiles of each of so many pictures."""
    height, width, channels = x.shape[1:]
    count = (height - overlap) // (2 * lines)
    place = (i // count * pictures, i % count * (2 * lines), 0, 0)
    return lax.dynamic_slice(x, place, (pictures, 2 * lines + overlap, width, channels))


def _following(count: int) -> np.ndarray:
    """The piece that follows each piece; the last one is followed by itself, and that copy is not used."""
    return np.minimum(np.arange(1, count + 1), count - 1)


def _tile(part: Images, lines: int, columns: int) -> Callable[[int, int], Array]:
    """(i, j) -> what stands at that place of every 4x4 tile."""
    x = part.reshape(part.shape[0], lines + 1, 2, columns + 1, 2, part.shape[-1])
    return lambda i, j: x[:, i // 2 : i // 2 + lines, i % 2, j // 2 : j // 2 + columns, j % 2]


def _transform(tile: Callable[[int, int], Array], rows: tuple) -> Float[Array, "16 t c"]:
    """rows @ tile @ rows' for all tiles, written place by place: XLA makes a concatenation element by element."""
    kept = None
    for place in range(16):
        value = _combine(tile, rows[place // 4], rows[place % 4])
        value = value.reshape(1, -1, value.shape[-1])
        kept = jnp.zeros((16, *value.shape[1:]), value.dtype) if kept is None else kept
        kept = lax.dynamic_update_slice(kept, value, (place, 0, 0))
    return kept


def _combine(tile: Callable[[int, int], Array], rows: tuple, columns: tuple) -> Array:
    """The sum of tile(i, j) with the signs of both."""
    total = None
    for i, a in rows:
        for j, b in columns:
            value = tile(i, j) if a * b > 0 else -tile(i, j)
            total = value if total is None else total + value
    return total
