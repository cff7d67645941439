"""The recommended UNet, and how parameters start."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dipddpm_jax import networks
from dipddpm_jax.errors import UserError
from dipddpm_jax.networks import layers
from dipddpm_jax.networks.unet import LabelAttention, fold, unfold

NETWORK = networks.UNet(num_classes=3, width=8, multipliers=(1, 2), blocks=1)
X, T = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.array([3, 700])


def test_it_starts_as_zero_and_depends_on_time_and_labels_later():
    labels = jnp.array([0, 2])
    variables = layers.initial_variables(NETWORK, jax.random.key(0), X, T, labels)
    assert not NETWORK.apply(variables, X, T, labels).any()
    params = jax.tree.map(lambda p: p + 0.1, variables["params"])
    apply = jax.jit(lambda t, labels: NETWORK.apply({"params": params}, X, t, labels))
    base = apply(T, labels)
    assert base.shape == X.shape
    assert jnp.abs(apply(T + 100, labels) - base).max() > 1e-3
    assert jnp.abs(apply(T, jnp.array([1, 2])) - base)[0].max() > 1e-3
    np.testing.assert_allclose(apply(T, jnp.array([1, 2]))[1], base[1], atol=1e-5)


def test_one_class_and_a_one_hot_vector_say_the_same():
    variables = layers.initial_variables(NETWORK, jax.random.key(0), X, T, jnp.array([0, 2]))
    params = {"params": jax.tree.map(lambda p: p + 0.1, variables["params"])}
    np.testing.assert_allclose(NETWORK.apply(params, X, T, jnp.array([-1, 2])),
                               NETWORK.apply(params, X, T, jnp.array([[0.0, 0, 0], [0, 0, 1]])), atol=1e-5)


def test_pixels_attend_to_the_labels_of_their_own_picture():
    """By hand for one pixel; entries of labels that are absent do nothing, and without labels one entry is left."""
    x, present = jax.random.normal(jax.random.key(2), (2, 2, 2, 8)), jnp.array([[1.0, 0, 1], [0, 0, 0]])
    layer = LabelAttention()
    params = layer.init(jax.random.key(0), x, present)["params"]
    params["Gain_0"]["gain"] = jnp.ones(8)
    found = layer.apply({"params": params}, x, present)
    normed = (x - x.reshape(2, 4, 8).mean(1)[:, None, None]) / jnp.sqrt(x.reshape(2, 4, 8).var(1)[:, None, None] + 1e-5)
    query = normed[0, 0, 1] @ params["query"]["kernel"] + params["query"]["bias"]
    weights = jax.nn.softmax(query @ params["keys"][jnp.array([0, 2, 3])].T / np.sqrt(8))
    mixed = weights @ params["values"][jnp.array([0, 2, 3])]
    np.testing.assert_allclose(found[0, 0, 1], x[0, 0, 1] + mixed @ params["out"]["kernel"] + params["out"]["bias"],
                               atol=1e-5)
    alone = params["values"][3] @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(found[1], x[1] + alone[None, None], atol=1e-5)


def test_a_network_that_attends_to_labels_takes_none():
    network = NETWORK.clone(label_attention=True)
    variables = layers.initial_variables(network, jax.random.key(0), X, T, jnp.array([0, 2]))
    params = {"params": jax.tree.map(lambda p: p + 0.1, variables["params"])}
    np.testing.assert_allclose(network.apply(params, X, T, jnp.zeros((2, 3)))[1:],
                               network.apply(params, X, T, jnp.array([0, -1]))[1:], atol=1e-5)
    assert network.apply(params, X, T, None).shape == X.shape


def test_folding_is_undone():
    np.testing.assert_array_equal(unfold(fold(X, 2), 2), X)
    assert fold(X, 4).shape == (2, 2, 2, 16)


def test_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="multiples of 4"):
        jax.eval_shape(lambda: NETWORK.init(jax.random.key(0), jnp.zeros((1, 10, 12, 1)), T[:1]))


@pytest.mark.parametrize("network, shape", [
    (NETWORK, (1, 8, 8, 1)), (networks.SmallUNet(widths=(4, 4, 4), num_steps=10), (1, 28, 28, 1)),
    (networks.ContextUnet(width=8, num_classes=3), (1, 32, 32, 3)),
    (networks.AttentionUNet(widths=(8, 8, 8, 8), time_dim=8, num_classes=3), (1, 8, 8, 1)),
], ids=lambda x: type(x).__name__ if not isinstance(x, tuple) else "")
def test_fast_initialisation_is_that_of_the_layers(network, shape):
    """Same tree, same constants, and uniform draws whose spread is the layers' own."""
    args = jnp.zeros(shape), jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32)
    fast = layers.initial_variables(network, jax.random.key(0), *args)
    slow = jax.eval_shape(lambda: network.init(jax.random.key(0), *args))
    assert jax.tree.map(jnp.shape, fast) == jax.tree.map(jnp.shape, slow)
    for path, leaf in traverse_util.flatten_dict(fast["params"]).items():
        if path[-1] == "kernel" and leaf.size > 500:
            bound = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
            assert float(leaf.std()) == pytest.approx(bound / np.sqrt(3), rel=0.15)
            assert float(jnp.abs(leaf).max()) <= bound


def test_layers_start_as_pytorch_has_it():
    x = jnp.zeros((1, 4, 4, 50))
    for layer, bound in [(layers.Conv(40, 3), 1 / np.sqrt(9 * 50)), (layers.ConvTranspose(40, 2), 1 / np.sqrt(4 * 40)),
                         (layers.Dense(40), 1 / np.sqrt(50))]:
        for init in (layers.initial_variables, lambda layer, key, x: layer.init(key, x)):
            params = init(layer, jax.random.key(0), x)["params"]
            for leaf in (params["kernel"], params["bias"]):
                assert 0.9 * bound < float(jnp.abs(leaf).max()) <= bound


def test_draws_depend_on_key_and_path_alone():
    args = X, T, None
    a, b, c = (layers.initial_variables(NETWORK, jax.random.key(k), *args)["params"] for k in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))
    assert float(jnp.abs(a["stem"]["kernel"] - c["stem"]["kernel"]).max()) > 0
