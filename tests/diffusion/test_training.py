"""Training: exact resuming, order and chunk independence, dropped steps, devices."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dipddpm_jax import devices
from dipddpm_jax.diffusion import forward, schedules, training
from dipddpm_jax.networks import UNet
from dipddpm_jax.networks.layers import BatchNorm

NETWORK = UNet(num_steps=50, num_classes=10, width=8, multipliers=(1,), blocks=1, patch_size=2)
OPTIMIZER = optax.adam(1e-3)
PAIR = partial(forward.training_pair, schedules.linear(50), "v")
LABELS = np.arange(40, dtype=np.int32) % 10
IMAGES = np.uint8(25 * LABELS[:, None, None, None] + np.random.default_rng(0).integers(0, 20, (40, 8, 8, 1)))
LENGTH = 8


def make(mesh=None, shard=False):
    loss = training.make_loss(NETWORK, PAIR, jnp.dtype("float32"))
    step = training.make_train_step(loss, 50, OPTIMIZER, ema_decay=0.999, drop_rate=0.1)
    if mesh is None:
        return training.make_chunk(step, 16, LENGTH, training.Pixels().encode)
    across = NamedSharding(mesh, PartitionSpec("batch"))
    shardings = devices.state_shardings(mesh, start(), shard)
    return training.make_chunk(step, 16, LENGTH, training.Pixels().encode,
                               lambda batch: jax.lax.with_sharding_constraint(batch, across),
                               (shardings, devices.replicated(mesh))), shardings


def start():
    return training.init_state(NETWORK, OPTIMIZER, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32), jax.random.key(0))


@pytest.fixture(scope="module")
def run():
    chunk = make()
    return lambda state, count, images=IMAGES: chunk(state, jnp.asarray(images), jnp.asarray(LABELS), jnp.int32(count))


def leaves(state):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(state)]


def assert_equal(a, b, atol=0.0):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def test_a_weighted_loss_is_the_weighted_mean_of_the_losses_of_single_pictures():
    state, x = start(), jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    t, labels, eps, weights = jnp.array([1, 20, 50]), jnp.arange(3), jnp.ones_like(x), jnp.array([0.5, 0.0, 2.0])
    plain = jax.jit(training.make_loss(NETWORK, PAIR, jnp.dtype("float32")), static_argnums=7)
    weighted = jax.jit(training.make_loss(
        NETWORK, PAIR, jnp.dtype("float32"), lambda times: weights[jnp.searchsorted(t, times)]), static_argnums=7)

    def of(loss, which):
        return loss(state.params, state.collections, x[which], labels[which], t[which], eps[which], state.key, False)[0]

    alone = jnp.stack([of(plain, slice(i, i + 1)) for i in range(3)])
    np.testing.assert_allclose(of(weighted, slice(None)), jnp.mean(weights * alone), rtol=1e-5)


def test_chunk_lengths_do_not_change_the_result(run):
    whole, _ = run(start(), 7)
    state = start()
    for count in (1, 4, 2):
        state, _ = run(state, count)
    assert_equal(whole, state)
    assert int(whole.step) == 7


def test_the_loss_falls(run):
    state, first = run(start(), LENGTH)
    for _ in range(30):
        state, last = run(state, LENGTH)
    assert last.loss.mean() < 0.8 * first.loss.mean()


def test_metrics_of_steps_not_run_are_nan(run):
    _, metrics = run(start(), 3)
    assert np.isfinite(metrics.loss[:3]).all() and np.isnan(metrics.loss[3:]).all()


def test_every_picture_is_used_once_an_epoch():
    """A step that adds up what it sees: 2 batches of 16 of 32 pictures, whatever the chunk."""
    seen = training.make_chunk(lambda state, images, labels: (
        state._replace(step=state.step + 1, params=state.params.at[labels].add(1)),
        training.Metrics(jnp.float32(0), jnp.float32(0))), 16, LENGTH, training.Pixels().encode)
    state = training.TrainState(jnp.int32(0), jnp.zeros(32), {}, {}, {}, jax.random.key(0))
    images, names = jnp.zeros((32, 2, 2, 1), jnp.uint8), jnp.arange(32)
    state, _ = seen(state, images, names, jnp.int32(2))
    np.testing.assert_array_equal(state.params, 1)
    state, _ = seen(state, images, names, jnp.int32(5))
    state, _ = seen(state, images, names, jnp.int32(1))
    np.testing.assert_array_equal(state.params, 4)


@pytest.mark.parametrize("count", [2, 8])
def test_the_order_of_pictures_does_not_depend_on_how_many_devices_share_them(count):
    """Nor on how many processes hold those devices: the order follows from the key, inside the program of all."""
    def noted(state, images, labels):
        return state._replace(step=state.step + 1, params=state.params.at[state.step].set(labels)), training.Metrics(
            jnp.float32(0), jnp.float32(0))

    def orders(place):
        state = training.TrainState(jnp.int32(0), jnp.zeros((6, 8), jnp.int32), {}, {}, {}, jax.random.key(3))
        chunk = training.make_chunk(noted, 8, 6, training.Pixels().encode, place)
        return np.asarray(chunk(state, jnp.zeros((24, 2, 2, 1), jnp.uint8), jnp.arange(24), jnp.int32(6))[0].params)

    across = NamedSharding(Mesh(np.array(jax.devices()[:count]), ("batch",)), PartitionSpec("batch"))
    shared = orders(lambda batch: jax.lax.with_sharding_constraint(batch, across))
    np.testing.assert_array_equal(shared, orders(lambda batch: batch))
    np.testing.assert_array_equal(np.sort(shared.reshape(2, 24)), [np.arange(24)] * 2)  # two epochs


def test_a_step_that_is_not_finite_changes_nothing_and_says_so():
    """The loss turns infinite at step 3, as it does when a rate is too high."""
    def loss(params, collections, images, labels, t, eps, key, train):
        return jnp.sum(params**2) / jnp.where(params[0] < 0.75, 0.0, 1.0), collections

    step = training.make_train_step(loss, 50, optax.sgd(0.05), ema_decay=0.999, drop_rate=0.1)
    chunk = training.make_chunk(step, 16, LENGTH, training.Pixels().encode)
    params = jnp.ones(2)
    state = training.TrainState(jnp.int32(0), params, {}, params + 0, optax.sgd(0.05).init(params), jax.random.key(0))
    state, metrics = chunk(state, jnp.asarray(IMAGES), None, jnp.int32(LENGTH))
    assert int(state.step) == 3 and np.isfinite(state.params).all()
    assert np.isfinite(metrics.loss[:3]).all() and not np.isfinite(metrics.loss[3:]).any()


def test_ema_forgets_the_start_and_then_decays_slowly():
    assert float(training.ema_decay_at(jnp.int32(0), 0.999)) == pytest.approx(0.1)
    assert float(training.ema_decay_at(jnp.int32(10**6), 0.999)) == pytest.approx(0.999)
    assert float(training.ema_decay_at(jnp.int32(50), 0.0)) == 0


def test_labels_are_dropped_at_the_asked_rate():
    labels = jnp.arange(4000) % 10
    _, _, kept = training.random_draws(jax.random.key(0), 50, jnp.zeros((4000, 1, 1, 1)), labels, 0.1)
    assert np.mean(kept == -1) == pytest.approx(0.1, abs=0.02)
    assert np.all((kept == labels) | (kept == -1))
    _, _, hot = training.random_draws(jax.random.key(0), 50, jnp.zeros((4000, 1, 1, 1)), jnp.ones((4000, 3)), 0.1)
    assert set(np.asarray(hot.sum(1)).tolist()) == {0.0, 3.0}


def test_pixels_come_back():
    for pixels in (training.Pixels(), training.Pixels(0.1307, 0.3081), training.Pixels(0.0, 1.0)):
        np.testing.assert_array_equal(pixels.decode(pixels.encode(jnp.asarray(IMAGES))), IMAGES)


@pytest.mark.parametrize("shard", [False, True])
def test_eight_devices_give_what_one_gives(run, shard):
    """Adam turns the rounding of a sum over devices into steps, so the loss is what can be compared to 1e-6."""
    one, expected = run(start(), LENGTH)
    mesh = Mesh(np.array(jax.devices()[:8]), ("batch",))
    chunk, shardings = make(mesh, shard)
    state = devices.place(start(), shardings)
    images, labels = (devices.place(x, devices.replicated(mesh)) for x in (IMAGES, LABELS))
    state, metrics = chunk(state, images, labels, jnp.int32(LENGTH))
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-6, atol=1e-6)
    assert_equal(state, one, atol=2e-5)
    kernels = [x for x in jax.tree.leaves(state.params) if x.size > 1000]
    assert all((not x.is_fully_replicated) == shard for x in kernels)
    host = devices.to_host(state.params, mesh)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(host))


def test_bfloat16_computes_with_float32_parameters():
    loss = training.make_loss(NETWORK, PAIR, jnp.dtype("bfloat16"))
    step = training.make_train_step(loss, 50, OPTIMIZER, ema_decay=0.999, drop_rate=0.1)
    chunk = training.make_chunk(step, 16, 2, training.Pixels().encode)
    state, metrics = chunk(start(), jnp.asarray(IMAGES), jnp.asarray(LABELS), jnp.int32(2))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(state.params))
    full, x = training.make_loss(NETWORK, PAIR, jnp.dtype("float32")), jnp.ones((2, 8, 8, 1))
    params = jax.tree.map(lambda p: p + 0.05, start().params)
    args = params, {}, x, jnp.array([1, 2]), jnp.array([10, 40]), 0.5 * x, jax.random.key(0), False
    a, b = full(*args)[0], loss(*args)[0]
    assert float(a) == pytest.approx(float(b), rel=0.05) and float(a) != float(b)


def test_nothing_is_copied_to_the_host_within_a_chunk(run):
    images, labels, count = jnp.asarray(IMAGES), jnp.asarray(LABELS), jnp.int32(4)
    chunk, state = make(), start()
    jax.block_until_ready(state)
    with jax.transfer_guard("disallow"):
        state, metrics = chunk(state, images, labels, count)
        jax.block_until_ready(state)
    assert int(state.step) == 4


class Normalised(nn.Module):
    """A network of one BatchNorm."""

    @nn.compact
    def __call__(self, x, t, labels=None, train=False):
        return BatchNorm(name="norm")(x, train)


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_batch_statistics_are_averaged_over_as_many_steps_as_the_parameters(decay):
    """A parameter that equals the mean of each batch is averaged to what the running mean should be."""
    means = np.random.default_rng(0).normal(size=600)

    def loss(params, collections, images, labels, t, eps, key, train):
        _, new = Normalised().apply({"params": params, **collections}, images, t, train=True, mutable=["batch_stats"])
        return jnp.mean((params["norm"]["bias"] - images.mean()) ** 2) / 2, new

    optimizer = optax.sgd(1.0)  # one step lands on the mean of the batch
    state = training.init_state(Normalised(), optimizer, jnp.zeros((1, 2, 2, 1)), None, jax.random.key(0))
    step = training.make_train_step(loss, 50, optimizer, ema_decay=decay, drop_rate=0.0)
    state, _ = jax.lax.scan(lambda state, mean: (step(state, jnp.full((1, 2, 2, 1), mean), None)[0], None), state,
                            jnp.asarray(means, jnp.float32))
    kept, averaged = state.collections["batch_stats"]["norm"]["mean"], state.ema_params["norm"]["bias"]
    last = float(0.1 * means[::-1] @ 0.9 ** np.arange(600))  # BatchNorm's own average, of about ten steps
    np.testing.assert_allclose(kept, averaged if decay else last, atol=5e-3)
    assert abs(last - float(averaged[0])) > 0.1


def test_a_library_caller_says_how_many_labels_are_dropped():
    with pytest.raises(TypeError, match="drop_rate"):
        training.make_train_step(lambda: None, 50, OPTIMIZER, ema_decay=0.999)
