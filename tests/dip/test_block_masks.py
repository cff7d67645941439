"""Held-out blocks: what is judged has no neighbour that a fit sees, and together the folds judge every block once."""
import jax
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter

from dipddpm_jax.commands import cli_fits, fits, outcome
from dipddpm_jax.commands.measurements import load_measurements
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.dip.folds import block_masks
from dipddpm_jax.errors import UserError


@pytest.mark.parametrize("size", [(40, 40), (33, 47), (41, 26)])
def test_every_pixel_is_hidden_once_and_none_that_is_judged_has_a_neighbour_that_is_seen(size):
    hidden, judged = (np.asarray(masks)[..., 0] for masks in block_masks(jax.random.key(0), *size, 4))
    assert (hidden.sum(0) == 1).all()
    assert set(np.unique(judged.sum(0))) == {0.0, 1.0}
    for one, inner in zip(hidden, judged):
        near = binary_dilation(inner > 0, np.ones((3, 3)))
        assert not (near & (one == 0)).any() and inner.sum() > 0.2 * one.sum()


@pytest.mark.parametrize("size", [(21, 16), (25, 11), (26, 26)])
def test_every_fold_of_a_small_picture_judges_something(size):
    for seed in range(10):
        _, judged = block_masks(jax.random.key(seed), *size, 8)
        assert (judged.sum((1, 2, 3)) > 0).all()


def saved(path, blur, size=48):
    y, x = np.mgrid[:size, :size] / size
    noise = np.random.default_rng(0).normal(0, 1, (size, size))
    noise = gaussian_filter(noise, blur) if blur else noise
    np.save(path, np.uint8(np.clip(128 + 60 * np.sin(7 * x + 3 * y) + 20 * noise / noise.std(), 0, 255)))
    return str(path)


@pytest.mark.parametrize("blur, folds", [(0.0, 1), (1.0, 1), (1.0, 10)])
def test_a_fit_holds_out_blocks_where_neighbours_share_noise(tmp_path, blur, folds):
    config = DipConfig(image=saved(tmp_path / "a.npy", blur), folds=folds, network="conv")
    given = load_measurements(config)
    assert given.correlated == (blur > 0) == any("correlated" in note for note in given.notes)
    if blur:
        assert 255 * given.sigma[0] > 14  # by neighbours it would be 6
    problems = fits.make_fits(config, given).problems
    assert (problems.known is not None) == given.correlated
    if given.correlated:
        known, judged = (np.asarray(a)[..., 0] for a in (problems.known, problems.held_out))
        assert (known * judged == judged).all()
        for one, inner in zip(known, judged):
            assert not (binary_dilation(inner > 0, np.ones((3, 3))) & (one * (1 - inner) > 0)).any()
    pixels = fits.make_fits(DipConfig(image=config.image, folds=folds, network="conv", hold_out="pixels"), given)
    assert pixels.problems.known is None


@pytest.mark.parametrize("more, said", [
    ({}, "blocks of 5x5 pixels were held out"), ({"hold_out": "pixels"}, "--hold-out blocks would judge"),
    ({"folds": 100}, "too small to hold out blocks"), ({"stop": "wmv"}, None)])
def test_what_is_said_about_shared_noise_is_what_was_done(tmp_path, more, said):
    config = DipConfig(image=saved(tmp_path / "a.npy", 1.0), **more)
    given = load_measurements(config)
    notes = outcome.shared_noise(config, given)
    assert notes == [] if said is None else len(notes) == 1 and said in notes[0]
    assert "blocks" not in " ".join(given.notes)  # which other methods quote, too


def test_blocks_of_a_small_picture_are_refused_and_idle_options_too(tmp_path, capsys):
    config = DipConfig(image=saved(tmp_path / "a.npy", 0, 12), hold_out="blocks")
    with pytest.raises(UserError, match="needs 10 blocks of 5x5; the picture has 12x12"):
        fits.make_fits(config, load_measurements(config))
    with pytest.raises(SystemExit):
        cli_fits.dip_main(["--image", config.image, "--stop", "wmv", "--hold-out", "blocks"])
    assert "--hold-out does nothing here" in capsys.readouterr().err
