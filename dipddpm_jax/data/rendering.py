"""Draws scenes: up to three objects on a lit floor, as in CLEVR (Johnson et al. 2017), by NumPy alone.

Each object is ray-traced, nine rays a pixel, in a small window; windows are laid over one another from far to near.
Sizes, camera, floor and light were fitted to two pictures of iCLEVR. World: x to the right, y away from the camera, z
up, the floor at z = 0. Colours are linear light; the display takes the square root.
"""
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8

from dipddpm_jax.errors import UserError

COLOURS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SHAPES = ("cube", "sphere", "cylinder")  # label = 8 * shape + colour
MAX_OBJECTS = 3
SIZE = 64
CHUNK = 64  # pictures that are rendered together: their arrays stay in the cache

_TRIES = 48  # arrangements that are drawn for a picture
_RADIUS = 0.7  # half the width, depth and height of every object
_REACH = 3.0  # objects stand in the square of CLEVR, |x| + |y| <= 3 sqrt 2: its camera sees it over a corner
_CAMERA_Y, _CAMERA_Z = -9.9, 5.55
_SIN, _COS = math.sin(math.radians(24.4)), math.cos(math.radians(24.4))  # of the angle at which the camera looks down
_FOCAL_X, _FOCAL_Y = 350 / 320 * SIZE, 350 / 240 * SIZE  # a 35 mm lens; 320x240 pixels are squeezed into a square
_ROWS, _COLUMNS = 30, 22  # a window that holds any object
_RAYS = 3  # along a side of a pixel
_TINT = np.array([1, 0.97, 0.92], np.float32)
_ALBEDO = _TINT / 255 * np.array([(115, 112, 109), (173, 35, 35), (42, 75, 215), (29, 105, 20), (129, 74, 25),
                                  (129, 38, 192), (41, 208, 208), (255, 238, 51)], np.float32)
_LIGHT, _LIGHT_X, _LIGHT_Y, _LIGHT_Z = 0.19, 0.080, -0.085, 0.140  # a surface receives the first + others . normal
_LAMPS = ((5.0, -6.0, 9.0, 0.16), (0.5, 5.0, 6.5, 0.2))  # x, y, z of what casts shadows, and how dark they are
_GRAIN = 0.5  # of 255: what is left of a path tracer's noise when 320x240 has become 64x64

Numbers = Float32[np.ndarray, "..."] | float


class _Objects(NamedTuple):
    """All objects of some pictures, one picture after the other, the far ones first."""

    picture: Int[np.ndarray, "m"]
    label: Int[np.ndarray, "m"]
    x: Float32[np.ndarray, "m"]
    y: Float32[np.ndarray, "m"]
    angle: Float32[np.ndarray, "m"]

    def those(self, chosen) -> "_Objects":
        return _Objects(*(field[chosen] for field in self))


class _Traces(NamedTuple):
    """What rays found: for each pixel of a window how much of it the object covers, and the light on that part."""

    top: Int[np.ndarray, "m"]
    left: Int[np.ndarray, "m"]
    cover: Float32[np.ndarray, "m 30 22"]
    received: Float32[np.ndarray, "m 30 22"]


def render(labels: Float32[np.ndarray, "n 24"], rng: np.random.Generator) -> UInt8[np.ndarray, "n 64 64 3"]:
    """One new picture for each row of multi-hot labels, which name at most three objects; else UserError."""
    if not (np.isin(labels, (0, 1)).all() and labels.sum(axis=1).max(initial=0) <= MAX_OBJECTS):
        raise UserError(f"a scene has at most {MAX_OBJECTS} different objects: labels are zeros and up to "
                        f"{MAX_OBJECTS} ones a row")
    images = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    for start in range(0, len(labels), CHUNK):
        part = labels[start : start + CHUNK]
        images[start : start + CHUNK] = _painted(_arranged(part, rng), len(part), rng)
    return images


def _arranged(labels: Float32[np.ndarray, "n 24"], rng: np.random.Generator) -> _Objects:
    """Where the objects stand: as in the first arrangement drawn that shows them all well, or else the best one."""
    along, across = _REACH * rng.uniform(-1, 1, (2, len(labels), _TRIES, MAX_OBJECTS)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi, (len(labels), MAX_OBJECTS)).astype(np.float32)
    x, y = (along + across) / math.sqrt(2), (along - across) / math.sqrt(2)
    column, row, depth = _projected(x, y, _RADIUS)
    half = _FOCAL_X * _RADIUS / depth  # of an object's width, in pixels
    bottom = _projected(x, y - math.sqrt(2) * _RADIUS, 0.0)[1]
    exists = np.arange(MAX_OBJECTS) < labels.sum(axis=1)[:, None, None]
    inside = (np.abs(column - SIZE / 2) + 1.5 * half <= SIZE / 2) & (bottom <= SIZE)
    score = (inside | ~exists).all(axis=2).astype(np.float32)  # 1 is good enough
    for i, j in ((0, 1), (0, 2), (1, 2)):
        apart = np.hypot(x[..., i] - x[..., j], y[..., i] - y[..., j]) / (2.6 * _RADIUS)
        overlap = np.hypot(column[..., i] - column[..., j], 0.6 * (row[..., i] - row[..., j]))
        seen = overlap / (0.65 * (half[..., i] + half[..., j]))
        score = np.where(exists[..., j], np.minimum(score, np.minimum(apart, seen)), score)
    best = score.argmax(axis=1)
    picture, label = np.nonzero(labels)
    slot = np.arange(len(picture)) - np.searchsorted(picture, picture)
    chosen = _Objects(picture, label, x[picture, best[picture], slot], y[picture, best[picture], slot],
                      angle[picture, slot])
    return chosen.those(np.lexsort([-chosen.y, picture]))  # the far ones first


def _painted(objects: _Objects, n: int, rng: np.random.Generator) -> UInt8[np.ndarray, "n 64 64 3"]:
    rank = np.arange(len(objects.x)) - np.searchsorted(objects.picture, objects.picture)
    layers = [objects.those(rank == i) for i in range(MAX_OBJECTS)]  # one object a picture, so indices never repeat
    lit = np.ones((n, SIZE, SIZE, 1), np.float32)
    for layer in layers:
        lit[layer.picture, ..., 0] *= _unshadowed(layer)
    light = np.zeros((n, SIZE + 2 * _ROWS, SIZE + 2 * _COLUMNS, 3), np.float32)
    inside = light[:, _ROWS:-_ROWS, _COLUMNS:-_COLUMNS]
    np.multiply(_FLOOR, lit, out=inside)
    for layer in layers:
        top, left, cover, received = _traced(layer)
        where = (layer.picture[:, None, None], top[:, None, None] + np.arange(_ROWS, 2 * _ROWS)[:, None],
                 left[:, None, None] + np.arange(_COLUMNS, 2 * _COLUMNS))
        colour = _ALBEDO[layer.label % len(COLOURS)][:, None, None]
        light[where] = light[where] * (1 - cover)[..., None] + colour * received[..., None]
    display = _GRAIN * rng.standard_normal(inside.shape, np.float32) + 0.5
    display += 255 * np.sqrt(inside)
    return display.clip(0, 255, out=display).astype(np.uint8)


def _projected(x: Numbers, y: Numbers, z: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Column, row (in pixels) and depth of points in the world."""
    ahead, above = y - _CAMERA_Y, z - _CAMERA_Z
    depth, down = _COS * ahead - _SIN * above, -_SIN * ahead - _COS * above
    return SIZE / 2 + _FOCAL_X * x / depth, SIZE / 2 + _FOCAL_Y * down / depth, depth


def _direction(column: Numbers, row: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """x, y, z of the rays from the camera through points of the picture; all of them look down."""
    down = (row - SIZE / 2) / _FOCAL_Y
    return (column - SIZE / 2) / _FOCAL_X, _COS - _SIN * down, -_SIN - _COS * down


def _floor() -> Float32[np.ndarray, "64 64 3"]:
    """The empty scene: a dark backdrop bends into the floor; a cold lamp at the left, a warm one in front."""
    middle = ((np.arange(SIZE) + 0.5) / (SIZE / 2) - 1).astype(np.float32)
    x, y = np.meshgrid(middle, middle)
    floor = 1 / (1 + np.exp((0.4 * x**2 - 0.4 - y) / 0.1))
    lamp = np.exp(-(((x + 1) / 0.35) ** 2) - ((y + 0.1) / 0.14) ** 2)
    parts = np.stack([np.ones_like(x), floor, floor * x, floor * y, floor * x * y, floor * y**2, lamp], -1)
    display = parts @ np.array([(103.5, 103.3, 103), (32.1, 30.8, 30.7), (-3.9, -3.8, -6.3), (-12.8, -16, -20.3),
                                (27.8, 26.7, 27.3), (25.8, 28.5, 28.7), (27.9, 32.1, 39.7)], np.float32)
    return (display / 255) ** 2


_FLOOR = _floor()


def _unshadowed(objects: _Objects) -> Float32[np.ndarray, "m 64 64"]:
    """The part of the floor's light that is left where an object stands in the way: soft, darkest at its foot."""
    middle = np.arange(SIZE, dtype=np.float32) + 0.5
    dx, dy, dz = _direction(middle[None, None, :], middle[None, :, None])
    x = -_CAMERA_Z / dz * dx - objects.x[:, None, None]  # of the floor's points, from the foot
    y = _CAMERA_Y - _CAMERA_Z / dz * dy - objects.y[:, None, None]
    foot = np.where(objects.label // len(COLOURS) == SHAPES.index("sphere"), 0.4, 0.7).astype(np.float32)
    beyond = np.maximum(np.sqrt(x**2 + y**2) - foot[:, None, None], 0)
    left = 1 - 0.45 * np.exp(beyond / -0.22)
    for lamp_x, lamp_y, lamp_z, darkness in _LAMPS:
        length = 2 * _RADIUS / (lamp_z - 2 * _RADIUS)
        along_x, along_y = ((length * (a - b))[:, None, None] for a, b in ((objects.x, lamp_x), (objects.y, lamp_y)))
        part = ((x * along_x + y * along_y) / (along_x**2 + along_y**2)).clip(0, 1)
        squared = (x - part * along_x) ** 2 + (y - part * along_y) ** 2
        left = left * (1 - darkness * np.exp(squared / -(0.7 * _RADIUS + 0.35 * part) ** 2))
    return left


def _traced(objects: _Objects) -> _Traces:
    """The objects alone, each in its window."""
    column, row, _ = _projected(objects.x, objects.y, 0.8 * _RADIUS)
    top, left = (np.rint(middle - side / 2).astype(int) for middle, side in ((row, _ROWS), (column, _COLUMNS)))
    rows, columns = ((start[:, None] + (np.arange(side * _RAYS + 2) - 0.5) / _RAYS).astype(np.float32)
                     for start, side in ((top, _ROWS), (left, _COLUMNS)))
    x, y, angle = (v[:, None, None] for v in (-objects.x, _CAMERA_Y - objects.y, objects.angle))
    cover = np.empty((len(top), _ROWS, _COLUMNS), np.float32)
    received = np.empty_like(cover)
    for shape, trace in enumerate((_cube, _sphere, _cylinder)):
        now = objects.label // len(COLOURS) == shape
        rays = _direction(columns[now, None, :], rows[now, :, None])
        hit, light = trace(x[now], y[now], *rays, angle[now])
        cover[now], received[now] = _pixels(hit.astype(np.float32)), _pixels(hit * light)
    return _Traces(top, left, cover, received)


def _pixels(rays: Float32[np.ndarray, "m i j"]) -> Float32[np.ndarray, "m 30 22"]:
    """Pixels as PIL's bilinear filter makes them when it shrinks a picture: weights in a triangle, two pixels wide."""
    weights = np.array([1, 2, 3, 2, 1], np.float32) / _RAYS**2
    rays = sum(w * rays[:, i : i + _ROWS * _RAYS : _RAYS] for i, w in enumerate(weights))
    return sum(w * rays[:, :, i : i + _COLUMNS * _RAYS : _RAYS] for i, w in enumerate(weights))


# What follows takes the camera's x and y from the middle of an object's foot, and the x, y, z of rays; it gives
# whether they hit the object, and the light that reaches the place.

def _cube(x, y, dx, dy, dz, angle):
    cos, sin = np.cos(angle), np.sin(angle)
    near, far = np.float32(-np.inf), np.float32(np.inf)
    faces = ((cos * x + sin * y, cos * dx + sin * dy, cos * _LIGHT_X + sin * _LIGHT_Y),
             (cos * y - sin * x, cos * dy - sin * dx, cos * _LIGHT_Y - sin * _LIGHT_X),
             (np.float32(_CAMERA_Z - _RADIUS), dz, _LIGHT_Z))
    light = np.float32(0)
    for o, d, lit in faces:
        with np.errstate(divide="ignore"):  # a ray along a face meets it nowhere
            a, b = (-_RADIUS - o) / d, (_RADIUS - o) / d
        enter = np.minimum(a, b)
        light = np.where(enter > near, _LIGHT + np.sign(o) * lit, light)
        near, far = np.maximum(near, enter), np.minimum(far, np.maximum(a, b))
    return near < far, light


def _sphere(x, y, dx, dy, dz, angle):
    z = _CAMERA_Z - _RADIUS
    a, b = dx**2 + (dy**2 + dz**2), dx * x + (dy * y + dz * z)
    root = b**2 - a * (x**2 + y**2 + z**2 - _RADIUS**2)
    t = (b + np.sqrt(np.maximum(root, 0))) / -a
    towards = _LIGHT_X * dx + (_LIGHT_Y * dy + _LIGHT_Z * dz)
    return root > 0, _LIGHT + (t * towards + (_LIGHT_X * x + _LIGHT_Y * y + _LIGHT_Z * z)) / _RADIUS


def _cylinder(x, y, dx, dy, dz, angle):
    a, b = dx**2 + dy**2, dx * x + dy * y
    root = b**2 - a * (x**2 + y**2 - _RADIUS**2)
    t = (b + np.sqrt(np.maximum(root, 0))) / -a
    height = _CAMERA_Z + t * dz
    side = (root > 0) & (height >= 0) & (height <= 2 * _RADIUS)
    lid = (2 * _RADIUS - _CAMERA_Z) / dz
    top = (x + lid * dx) ** 2 + (y + lid * dy) ** 2 <= _RADIUS**2
    light = _LIGHT + (t * (_LIGHT_X * dx + _LIGHT_Y * dy) + (_LIGHT_X * x + _LIGHT_Y * y)) / _RADIUS
    return side | top, np.where(top, _LIGHT + _LIGHT_Z, light)
