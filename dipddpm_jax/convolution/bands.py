"""One picture shared by the devices of a CPU: each has a band of its rows, and asks its neighbours for a few more.

Within `shared`, `sharing` says how many devices there are; convolutions and upsampling then work on bands (`by_rows`),
and XLA partitions the rest of a network by itself. On a CPU that is faster than one device with all the cores, since
the fast ways of a convolution do not share cores.
"""
import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from dipddpm_jax.convolution.cost import shared_out
from dipddpm_jax.types import Features, Image, Images

LARGE = 128 * 128  # pixels of a picture; the devices of a smaller one would mostly wait for each other
ROWS = "rows"
BANDS = PartitionSpec(None, ROWS)


def mesh() -> Mesh:
    """All devices of this process, in a row."""
    return Mesh(np.array(jax.local_devices()), (ROWS,))


def pays(shape: tuple[int, ...]) -> bool:
    """Whether to share the rows of such a picture (h w c): on a CPU, large, on one machine, not on a device's share."""
    count = jax.local_device_count()
    return (jax.default_backend() == "cpu" and count > 1 and jax.process_count() == 1 and not shared_out()
            and shape[0] % count == 0 and shape[0] * shape[1] >= LARGE)


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """What is traced within is shared by rows, where that goes."""
    with jax.sharding.use_abstract_mesh(mesh().abstract_mesh):
        yield


def sharing() -> int:
    """How many devices share the rows of a picture here."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[ROWS] if dict(zip(mesh.axis_names, mesh.axis_types)).get(ROWS) == AxisType.Auto else 1


def banded(picture: Image) -> Image:
    """A picture whose rows are from now on spread over the devices; XLA finds out about what is made from it."""
    return lax.with_sharding_constraint(picture, NamedSharding(mesh(), PartitionSpec(ROWS)))


def by_rows(
    f: Callable[..., Features], x: Images, *whole: Array, halo: int = 0,
    edge: Literal["zeros", "reflect", "edge"] = "zeros",
) -> Features:
    """f(band, *whole) of every device's band of rows, with `halo` rows of the neighbours above and below it; beyond the
    picture stand `edge` ("edge", its outermost row, is for a halo of 1). Rows must divide by the
    devices, and a band have more rows than the halo."""
    count = sharing()

    def local(x, *whole):
        if halo:
            above = lax.ppermute(x[:, -halo:], ROWS, [(i, i + 1) for i in range(count - 1)])  # zeros where none is
            below = lax.ppermute(x[:, :halo], ROWS, [(i + 1, i) for i in range(count - 1)])
            if edge != "zeros":
                place, h = lax.axis_index(ROWS), x.shape[1]
                first, last = ((x[:, 1 : halo + 1][:, ::-1], x[:, h - 1 - halo : h - 1][:, ::-1])
                               if edge == "reflect" else (x[:, :1], x[:, -1:]))
                above, below = jnp.where(place == 0, first, above), jnp.where(place == count - 1, last, below)
            x = jnp.concatenate([above, x, below], 1)
        return f(x, *whole)

    specs = (BANDS, *[PartitionSpec()] * len(whole))
    return jax.shard_map(local, in_specs=specs, out_specs=BANDS, check_vma=False)(x, *whole)
