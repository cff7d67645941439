"""Rendered scenes: right geometry, light and order of depth; reproducible; and like the real pictures of iCLEVR."""
import json
import time
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import ConvexHull

from benchmarks.places import ICLEVR
from dipddpm_jax import data
from dipddpm_jax.data import rendering, scenes
from dipddpm_jax.data.rendering import _arranged, _Objects, _painted, _traced, render
from dipddpm_jax.errors import UserError

needs_iclevr = pytest.mark.skipif(not ICLEVR.is_dir(), reason="no shared iCLEVR files beside the checkout")
SMALL = {"train": 150, "test": 70}


@pytest.fixture
def few(monkeypatch):
    for split, n in SMALL.items():
        monkeypatch.setitem(scenes.NUM_PICTURES, split, n)


def standing(*objects):
    """One picture with the objects (name, x, y, angle), given from far to near."""
    names, x, y, angle = zip(*objects)
    labels = np.array([scenes.OBJECTS.index(name) for name in names])
    return _Objects(np.zeros_like(labels), labels, *(np.array(v, np.float32) for v in (x, y, angle)))


def whole(traces, i):
    """What the i-th object covers of the whole picture."""
    cover = np.zeros((64, 64))
    rows, columns = traces.top[i] + np.arange(30), traces.left[i] + np.arange(22)
    r, c = (rows >= 0) & (rows < 64), (columns >= 0) & (columns < 64)
    cover[np.ix_(rows[r], columns[c])] = traces.cover[i][np.ix_(r, c)]
    return cover


@needs_iclevr
def test_labels_are_numbered_as_in_iclevr():
    assert json.loads((ICLEVR / "objects.json").read_text()) == {name: i for i, name in enumerate(scenes.OBJECTS)}
    assert len(json.loads((ICLEVR / "train.json").read_text())) == scenes.NUM_PICTURES["train"]


@needs_iclevr
def test_labels_have_the_statistics_of_iclevr():
    contents = json.loads((ICLEVR / "train.json").read_text()).values()
    real = np.array([[name in entry for name in scenes.OBJECTS] for entry in contents])
    ours = scenes.draw_labels(len(real), np.random.default_rng(0))
    assert np.bincount(ours.sum(1).astype(int)).tolist() == np.bincount(real.sum(1)).tolist() == [0, 6003, 6003, 6003]
    assert real.sum() == ours.sum()
    standard_error = np.sqrt(2 * real.sum() / 24)
    assert np.abs(ours.sum(0) - real.sum(0)).max() < 4 * standard_error
    together, real_together = (np.triu(m.T.astype(float) @ m, 1) for m in (ours, real))
    assert ((together > 0) == (real_together > 0)).all() and (together > 0).sum() == 24 * 23 // 2


@needs_iclevr
@pytest.mark.parametrize("file, ours", [("test.json", scenes.test_labels()),
                                        ("new_test.json", scenes.new_test_labels())])
def test_the_fixed_lists_are_made_up_as_those_of_iclevr(file, ours):
    lengths = sorted(len(entry) for entry in json.loads((ICLEVR / file).read_text()))
    assert sorted(ours.sum(1)) == lengths
    assert len(np.unique(ours, axis=0)) == 32 and ours.any(0).all()


def test_the_new_lists_repeat_a_colour_and_the_others_do_not():
    colours = [labels.reshape(-1, 3, 8).sum(1) for labels in (scenes.test_labels(), scenes.new_test_labels())]
    assert (colours[0] <= 1).all() and (colours[1].max(1) >= 2).all()
    assert (scenes.test_labels().sum(0) == 3).all()


def surface(shape, angle):
    """Points on the surface of a solid of half width 0.7 whose foot is at the origin."""
    s, u, v = np.linspace(-0.7, 0.7, 60), *np.meshgrid(np.linspace(0, 2 * np.pi, 300), np.linspace(0, 1, 100))
    if shape == "cube":
        x, y, z = (a.ravel() for a in np.meshgrid(s, s, s))
        return np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y, z + 0.7
    if shape == "sphere":
        return tuple(0.7 * a.ravel() for a in (np.sin(np.pi * v) * np.cos(u), np.sin(np.pi * v) * np.sin(u),
                                               1 + np.cos(np.pi * v)))
    side = (0.7 * np.cos(u), 0.7 * np.sin(u), 1.4 * v)
    lid = (0.7 * v * np.cos(u), 0.7 * v * np.sin(u), np.full_like(u, 1.4))
    return tuple(np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(side, lid))


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("x, y, angle", [(0, 0, 0.0), (2.5, -1.5, 0.4), (-2, 2, 1.1), (0.3, 3.9, 2.5)])
def test_rays_hit_what_a_camera_sees(shape, x, y, angle):
    """An object covers what the outline of its projected surface holds, by a matrix of the camera written out anew."""
    px, py, pz = surface(shape, angle)
    tilt = np.radians(24.4)
    camera = np.array([[1, 0, 0], [0, -np.sin(tilt), -np.cos(tilt)], [0, np.cos(tilt), -np.sin(tilt)]])
    right, down, ahead = camera @ np.stack([px + x, py + y + 9.9, pz - 5.55])
    columns, rows = 160 + 350 * right / ahead, 120 + 350 * down / ahead  # in the 320x240 pixels of CLEVR
    outline = ConvexHull(np.stack([columns * 64 / 320, rows * 64 / 240], 1))
    middles = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), -1).reshape(-1, 2)
    depth = -(middles @ outline.equations[:, :2].T + outline.equations[:, 2]).max(1).reshape(64, 64)  # below the edge
    cover = whole(_traced(standing((f"red {shape}", x, y, angle))), 0)
    assert (cover[depth > 1.5] > 0.999).all() and (cover[depth < -1.5] == 0).all() and (depth > 1.5).sum() > 10
    np.testing.assert_allclose(cover.sum(), outline.volume, rtol=0.02)  # of an outline, "volume" is the area


def test_light_falls_as_the_normals_say():
    """Of a sphere, where the ray through a pixel meets it and which way it is turned there, solved anew in float64."""
    traces = _traced(standing(("gray sphere", 0.5, -1, 0)))
    rows, columns = np.nonzero(traces.cover[0] > 0.9999)
    right = (columns + traces.left[0] + 0.5) * 320 / 64 - 160
    down = (rows + traces.top[0] + 0.5) * 240 / 64 - 120
    tilt = np.radians(24.4)
    camera = np.array([[1, 0, 0], [0, -np.sin(tilt), -np.cos(tilt)], [0, np.cos(tilt), -np.sin(tilt)]])
    rays = np.stack([right, down, np.full(len(rows), 350.0)], 1) @ camera
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    middle = np.array([0.5, -1 + 9.9, 0.7 - 5.55])  # from the camera
    along = rays @ middle
    distance = along - np.sqrt(along**2 - middle @ middle + 0.7**2)
    normals = (distance[:, None] * rays - middle) / 0.7
    wanted = rendering._LIGHT + normals @ (rendering._LIGHT_X, rendering._LIGHT_Y, rendering._LIGHT_Z)
    light = traces.received[0][rows, columns]
    assert len(rows) > 60 and light.max() > 1.4 * light.min() and normals[light.argmax(), 0] > 0.2  # from the right
    np.testing.assert_allclose(light, wanted, atol=0.015)
    np.testing.assert_allclose(np.median(light - wanted), 0, atol=0.003)


def test_the_nearer_object_hides_the_farther_one():
    rng, many = np.random.default_rng(0), scenes.draw_labels(300, np.random.default_rng(1))[:63]
    objects, images = _arranged(many, np.random.default_rng(2)), render(many, np.random.default_rng(2))
    assert all(y0 >= y1 for (p0, y0), (p1, y1) in pairwise(zip(objects.picture, objects.y)) if p0 == p1)
    nearest = np.flatnonzero(np.append(objects.picture[1:] != objects.picture[:-1], True))
    traces = _traced(objects)
    for i in nearest:
        covered = whole(traces, i) > 0.999
        alone = _painted(objects.those([i])._replace(picture=np.zeros(1, int)), 1, rng)[0]
        difference = images[objects.picture[i]][covered].astype(int) - alone[covered]
        assert covered.sum() > 20 and np.abs(difference).max() <= 6  # grain


def test_every_object_is_in_the_picture_and_not_hidden():
    labels = scenes.draw_labels(300, np.random.default_rng(3))
    objects = _arranged(labels, np.random.default_rng(4))
    traces, hidden = _traced(objects), np.zeros((300, 64, 64))
    assert not traces.cover[:, [0, -1]].any() and not traces.cover[:, :, [0, -1]].any()  # windows are large enough
    for i in reversed(range(len(objects.x))):
        cover = whole(traces, i)
        assert cover.sum() > 0.9 * traces.cover[i].sum()
        assert ((1 - hidden[objects.picture[i]]) * cover).sum() > 25  # pixels; CLEVR asks for 11
        hidden[objects.picture[i]] = np.maximum(hidden[objects.picture[i]], cover)
    np.testing.assert_array_equal(np.bincount(objects.picture), labels.sum(1))


def test_colours_are_told_apart():
    """The middle nine pixels of each object: as light, and whatever its brightness, nearest to CLEVR's colour."""
    clevr = np.array([(87, 87, 87), (173, 35, 35), (42, 75, 215), (29, 105, 20), (129, 74, 25), (129, 38, 192),
                      (41, 208, 208), (255, 238, 51)]) / 255
    images = render(np.eye(24, dtype=np.float32), np.random.default_rng(0))
    objects = _arranged(np.eye(24, dtype=np.float32), np.random.default_rng(0))
    column, row, _ = rendering._projected(objects.x, objects.y, 0.7)
    for label, (c, r) in enumerate(zip(column.astype(int), row.astype(int))):
        light = (images[label, r - 1:r + 2, c - 1:c + 2].mean((0, 1)) / 255) ** 2
        distance = np.abs(clevr / clevr.sum(1, keepdims=True) - light / light.sum()).sum(1)
        assert distance.argmin() == label % 8


@needs_iclevr
@pytest.mark.parametrize("number, objects", [
    (1, [("purple sphere", 0, 2.4, 0), ("brown cylinder", 3.8, 1.9, 0), ("red sphere", -2.6, 0.7, 0)]),
    (2, [("yellow cube", 0, 2.3, 0.14), ("red sphere", -2.25, -0.15, 0), ("gray cylinder", 0.85, -0.8, 0)]),
])
def test_a_real_scene_drawn_again_looks_the_same(number, objects):
    """The two real pictures, by the places that were read off them: 4 levels of 255 apart, objects and all."""
    real = Image.open(ICLEVR / "real_samples" / f"pdf_lab7_{number}.png").convert("RGB")
    real = np.array(real.resize((64, 64), Image.Resampling.BILINEAR)).astype(float)
    ours = _painted(standing(*objects), 1, np.random.default_rng(0))[0]
    assert np.abs(ours - real).mean() < 4
    hues = [(image - image.mean(2, keepdims=True)).ravel() for image in (ours, real)]
    assert np.corrcoef(*hues)[0, 1] > 0.9


def test_a_picture_depends_on_its_split_and_number_alone(tmp_path, few):
    sets = {split: data.load("scenes", split, tmp_path) for split in SMALL}
    for number, (split, n) in enumerate(SMALL.items()):
        dataset = sets[split]
        assert dataset.images.shape == (n, 64, 64, 3) and dataset.images.dtype == np.uint8
        assert dataset.labels.shape == (n, 24) and dataset.labels.dtype == np.float32
        assert dataset.label_names == scenes.OBJECTS
        again = render(dataset.labels[64:], np.random.default_rng([number, 65]))[: n - 64]
        np.testing.assert_array_equal(again[:64], dataset.images[64:128])
    assert not (sets["train"].labels[:70] == sets["test"].labels).all()
    np.testing.assert_array_equal(data.load("scenes", "test", tmp_path / "other").images, sets["test"].images)
    assert data.load("scenes", "test", tmp_path, image_size=32).images.shape == (70, 32, 32, 3)


def test_rendered_pictures_are_kept_and_a_damaged_or_old_copy_is_replaced(tmp_path, few, monkeypatch):
    first = data.load("scenes", "test", tmp_path).images
    copy = tmp_path / "scenes-test-rendered.npz"
    assert list(tmp_path.iterdir()) == [copy]
    monkeypatch.setattr(scenes, "render", None)
    np.testing.assert_array_equal(data.load("scenes", "test", tmp_path).images, first)
    monkeypatch.undo()
    monkeypatch.setitem(scenes.NUM_PICTURES, "test", 70)
    with np.load(copy) as stored:
        np.savez(copy, images=stored["images"][::-1], source="another program")
    np.testing.assert_array_equal(data.load("scenes", "test", tmp_path).images, first)
    copy.write_bytes(copy.read_bytes()[:-500])
    np.testing.assert_array_equal(data.load("scenes", "test", tmp_path).images, first)


def test_a_data_dir_that_cannot_be_written_still_serves(tmp_path, few):
    (tmp_path / "file").write_text("not a folder")
    assert len(data.load("scenes", "test", tmp_path / "file").images) == 70


def test_an_empty_scene_is_the_floor_and_too_many_objects_are_refused():
    rng = np.random.default_rng(0)
    floor = 255 * np.sqrt(rendering._FLOOR)
    assert np.abs(render(np.zeros((2, 24), np.float32), rng) - floor).max() < 4
    assert render(np.zeros((0, 24), np.float32), rng).shape == (0, 64, 64, 3)
    for wrong in (np.ones((1, 24)), np.full((1, 24), 0.5)):
        with pytest.raises(UserError, match="at most 3 different objects"):
            render(wrong.astype(np.float32), rng)


def test_rendering_is_fast():
    """500 pictures a second and more on a quiet core; a third of that is asked for here."""
    labels = scenes.draw_labels(192, np.random.default_rng(0))
    render(labels, np.random.default_rng(0))
    start = time.process_time()
    render(labels, np.random.default_rng(0))
    assert 192 / (time.process_time() - start) > 170
