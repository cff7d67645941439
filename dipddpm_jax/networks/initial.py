"""How parameters start: PyTorch's initialisers, and a quick way to start a whole network on the host."""
import functools
from collections.abc import Callable
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import Var
from jaxtyping import Array, Key, PyTree

UNIFORM = "torch_uniform_fan_in_"


@functools.lru_cache
def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): PyTorch's default (kaiming_uniform with a = sqrt 5), biases too."""
    def start(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -1, 1) / np.asarray(np.sqrt(fan_in), dtype)

    start.__name__ = f"{UNIFORM}{fan_in}"  # by which `initial_variables` knows it in a traced program
    compiled = jax.jit(start, static_argnums=(1, 2))
    return lambda key, shape, dtype=float: compiled(key, tuple(shape), jnp.result_type(dtype))


def torch_kernel(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> Array:
    """`torch_uniform` of a kernel, all of whose axes but the last count as inputs."""
    return torch_uniform(int(np.prod(shape[:-1])))(key, shape, dtype)


def torch_embedding(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> Array:
    """N(0, 1), as PyTorch's Embedding starts."""
    return _standard_normal(key, tuple(shape), jnp.result_type(dtype))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _standard_normal(key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


def initial_variables(network: nn.Module, key: Key[Array, ""], *example: Any) -> PyTree:
    """Variables as `network.init(key, *example)` draws them, in a tenth of the time: its compilation is the slowest.

    Every parameter starts as its module declares. PyTorch's initialisers draw on the host, from the key and the
    parameter's path alone; others run as declared. A traced key (jit, vmap) goes to `network.init`.
    """
    if isinstance(key, jax.core.Tracer):
        return network.init({"params": key, "noise": key}, *example)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), example)
    on_host, others = _declared(network, like)
    key_words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    variables = traverse_util.flatten_dict(others(key))
    for path, (name, leaf) in on_host.items():
        rng = np.random.default_rng([*key_words, crc32("/".join(path[1:]).encode())])
        if name.startswith(UNIFORM):
            value = rng.uniform(-1, 1, leaf.shape) / np.sqrt(int(name.removeprefix(UNIFORM)))
        else:
            value = rng.normal(size=leaf.shape)
        variables[path] = jnp.asarray(value, leaf.dtype)
    variables = traverse_util.unflatten_dict(variables)
    return {"params": variables.pop("params", {}), **variables}


@functools.lru_cache(maxsize=16)
def _declared(network: nn.Module, example: tuple[Any, ...]) -> tuple[dict, Callable]:
    """(initialiser and shape of each parameter that the host draws, by path; key -> the other variables, by path)."""
    def init(key):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example)
        return traverse_util.flatten_dict(network.init({"params": key, "noise": key}, *zeros))

    traced, shapes = jax.make_jaxpr(init, return_shape=True)(jax.random.key(0))
    names = {var: eqn.params.get("name", "") for eqn in traced.jaxpr.eqns for var in eqn.outvars}
    declared = {path: names.get(var, "") if isinstance(var, Var) else ""
                for path, var in zip(sorted(shapes), traced.jaxpr.outvars, strict=True)}
    on_host = {path: (name, shapes[path]) for path, name in declared.items()
               if name.startswith(UNIFORM) or name == _standard_normal.__name__}

    @jax.jit
    def others(key):  # little is left to compile
        return traverse_util.unflatten_dict({p: leaf for p, leaf in init(key).items() if p not in on_host})

    return on_host, others
