"""Large pictures in overlapping tiles: where they lie, and how they are joined without seams."""
import numpy as np
from jaxtyping import Float

Box = tuple[int, int, int, int]  # top, left, height, width


def tile_boxes(size: tuple[int, int], tile: int, overlap: int, multiple: int = 1) -> list[Box]:
    """Boxes of one shape that cover a picture, overlap by at least `overlap`, and start at multiples of `multiple`."""
    def starts(side: int, length: int) -> list[int]:
        count = 1 if length == side else -(-(side - overlap) // (length - overlap))
        return [round(i * (side - length) / max(count - 1, 1) / multiple) * multiple for i in range(count)]

    height, width = (min(side, max(tile // multiple, 1) * multiple) for side in size)
    return [(top, left, height, width) for top in starts(size[0], height) for left in starts(size[1], width)]


def join_tiles(tiles: Float[np.ndarray, "k h w c"], boxes: list[Box], size: tuple[int, int]) -> np.ndarray:
    """The picture whose tiles these are; where they overlap, each counts the more the farther its edge is."""
    height, width = tiles.shape[1:3]
    ramps = [np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in (height, width)]
    weight = np.outer(*ramps)[..., None].astype(np.float64)
    total, weights = np.zeros((*size, tiles.shape[-1])), np.zeros((*size, 1))
    for tile, (top, left, _, _) in zip(tiles, boxes):
        total[top : top + height, left : left + width] += weight * tile
        weights[top : top + height, left : left + width] += weight
    return (total / weights).astype(np.float32)
