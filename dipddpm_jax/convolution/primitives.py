"""What JAX has to know of an operation that we compute in our own way on a CPU: its derivatives, `vmap` and platforms.

A function of one array that is linear in it comes as a pair, each the transpose of the other; a product of two arrays
that is linear in each comes as three, each the derivative of the other two. With that, derivatives of every order work
in both modes, none is left to autodiff's slower forms, and the platform is chosen when a program is lowered, so that
one exports for GPU and TPU from a CPU too.
"""
import functools
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def new_primitive(name: str, plain: Callable[..., Array], on_cpu: Callable[..., Array] | None = None) -> Primitive:
    """An operation on arrays, with hashable keywords: computed by `plain`, or on a CPU by `on_cpu`."""
    primitive = Primitive(name)

    @functools.lru_cache
    def compiled(keywords: tuple[tuple[str, Hashable], ...]):
        return jax.jit(lambda *arrays: primitive.bind(*arrays, **dict(keywords)))

    def shape(*arrays, **keywords):
        like = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
        result = jax.eval_shape(functools.partial(plain, **keywords), *like)
        return jax.core.ShapedArray(result.shape, result.dtype)

    primitive.def_impl(lambda *arrays, **keywords: compiled(tuple(keywords.items()))(*arrays))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    if on_cpu is not None:
        mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    return primitive


def set_derivatives(primitive: Primitive, *transposes: Callable[..., Array]) -> None:
    """Differentiates an operation that is linear in each of its arrays.

    transposes[i](g, *arrays, **keywords) is the gradient to array i, for the gradient g to the result; of array i it
    may use shape and dtype alone.
    """
    def forward(arrays, tangents, /, **keywords):
        parts = [primitive.bind(*arrays[:i], tangent, *arrays[i + 1 :], **keywords)
                 for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]
        y = primitive.bind(*arrays, **keywords)
        return y, functools.reduce(jnp.add, parts) if parts else ad.Zero.from_primal_value(y)

    def backward(g, *arrays, **keywords):
        like = [array.aval if ad.is_undefined_primal(array) else array for array in arrays]
        return [None if isinstance(g, ad.Zero) or not ad.is_undefined_primal(array) else
                transpose(g, *like, **keywords) for array, transpose in zip(arrays, transposes)]

    ad.primitive_jvps[primitive] = forward
    ad.primitive_transposes[primitive] = backward


def set_derivatives_of_linear(
    primitive: Primitive, transpose: Callable[..., Array], change: Callable[..., Array]
) -> None:
    """Differentiates an operation f(x, a) that is linear in x alone.

    transpose(g, x, a) is the gradient to x; change(x, a, da) is how f(x, a) moves when a moves by da.
    """
    def forward(arrays, tangents, /, **keywords):
        (x, a), (dx, da) = arrays, tangents
        parts = [] if isinstance(dx, ad.Zero) else [primitive.bind(dx, a, **keywords)]
        parts += [] if isinstance(da, ad.Zero) else [change(x, a, da, **keywords)]
        y = primitive.bind(x, a, **keywords)
        return y, functools.reduce(jnp.add, parts) if parts else ad.Zero.from_primal_value(y)

    def backward(g, x, a, **keywords):
        return [None if isinstance(g, ad.Zero) else transpose(g, x.aval, a, **keywords), None]

    ad.primitive_jvps[primitive] = forward
    ad.primitive_transposes[primitive] = backward


def set_vmap(primitive: Primitive, rule: Callable[..., Array]) -> None:
    """rule(size, in_front, *arrays, **keywords) maps over a new first axis of the arrays that have it (`in_front`)."""
    def batched(arrays, places, /, **keywords):
        in_front = [place is not None for place in places]
        arrays = [jnp.moveaxis(a, place, 0) if new else a for a, place, new in zip(arrays, places, in_front)]
        return rule(next(a.shape[0] for a, new in zip(arrays, in_front) if new), in_front, *arrays, **keywords), 0

    batching.primitive_batchers[primitive] = batched
