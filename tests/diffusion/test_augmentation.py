"""Training pictures mirrored and moved."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dipddpm_jax.diffusion import augmentation, training

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(400, 6, 7, 2)), jnp.float32)


def test_half_of_the_pictures_are_mirrored_and_the_others_are_as_they_were():
    found = augmentation.mirrored(jax.random.key(0), IMAGES)
    same, turned = ((found == other).all((1, 2, 3)) for other in (IMAGES, IMAGES[:, :, ::-1]))
    assert (same ^ turned).all() and 0.4 < turned.mean() < 0.6


def test_pictures_are_moved_by_every_distance_alike_and_their_edges_repeated():
    most = 2
    found = np.asarray(augmentation.moved(jax.random.key(0), IMAGES, most))
    padded = np.pad(IMAGES, ((0, 0), (most, most), (most, most), (0, 0)), "edge")
    moves = [(i, j) for i in range(2 * most + 1) for j in range(2 * most + 1)]
    hits = np.array([(found == padded[:, i:i + 6, j:j + 7]).all((1, 2, 3)) for i, j in moves])
    assert (hits.sum(0) == 1).all() and (hits.sum(1) > 4).all()


@pytest.mark.parametrize("mirror, shift", [(False, 0), (True, 0), (False, 1), (True, 1)])
def test_each_does_only_what_it_is_asked_for(mirror, shift):
    found = augmentation.augmented(jax.random.key(3), IMAGES, mirror, shift)
    kinds = [IMAGES, IMAGES[:, :, ::-1]][: 1 + mirror]
    assert bool((found == IMAGES).all()) == (not mirror and not shift)
    inner = [augmentation.moved(jax.random.split(jax.random.key(3))[1], kind, shift) for kind in kinds]
    assert np.any([(found == one).all((1, 2, 3)) for one in inner], 0).all()


def test_a_training_step_sees_the_changed_pictures():
    def loss(params, collections, images, labels, t, eps, key, train):
        return jnp.mean((params - images) ** 2), collections

    optimizer, images = optax.sgd(1.0), IMAGES[:1]
    zero = jnp.zeros_like(images)
    state = training.TrainState(jnp.int32(0), zero, {}, zero, optimizer.init(zero), jax.random.key(0))
    step = training.make_train_step(loss, 10, optimizer, ema_decay=0.0, drop_rate=0.0,
                                    augment=lambda key, images: images + jax.random.uniform(key))
    first, _ = step(state, images, None)
    second, _ = step(state._replace(step=jnp.int32(1)), images, None)
    moved = [np.asarray(s.params * images.size / 2 - images) for s in (first, second)]
    assert all(np.ptp(m) < 1e-4 and 0 < m.mean() < 1 for m in moved) and abs(moved[0].mean() - moved[1].mean()) > 1e-3
