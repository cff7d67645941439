"""Programs that run without this package: the sampler of a model in the portable form of `jax.export` (StableHLO)."""
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from dipddpm_jax.commands.model import Model, draw_batch
from dipddpm_jax.config.diffusion import AUTOENCODE
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.errors import UserError


def sampling_program(
    model: Model, sampler: SamplerConfig, batch_size: int, platforms: Sequence[str]
) -> tuple[export.Exported, list[dict[str, Any]]]:
    """(the program, its arguments as records of name, dtype, shape and meaning); the weights are constants inside.

    It returns the pictures as bytes, and whether each is finite. Picture i of a call depends on seed, first + i and its
    label alone, as in `model.draw`. Raises UserError for guidance without labels, and for system 003's network.
    """
    if model.config.target == AUTOENCODE:
        raise UserError("a network that was trained to autoencode begins with pictures of a data set, so that it "
                        "cannot be exported as a sampler")
    known = len(model.facts.label_names)
    if sampler.guidance and not known:
        raise UserError("--guidance needs a model that was trained with labels, and this one was not")
    shown = [("seed", jnp.int32, (), "that of sample.py --seed"),
             ("first", jnp.int32, (), "number of the first picture; 0, batch, 2 batch, ... draw many")]
    if known:
        shape = (batch_size, known) if model.facts.multi_hot else (batch_size,)
        shown.append(("labels", jnp.float32 if model.facts.multi_hot else jnp.int32, shape,
                      "1 for each label that a picture is to have" if model.facts.multi_hot else
                      "number of the class in label_names"))
    if sampler.guidance:
        shown.append(("guidance", jnp.float32, (), f"weight w of classifier-free guidance; the run's is "
                                                   f"{sampler.guidance:g}"))
    program = partial(draw_batch, config=model.config, facts=model.facts, network=model.network, most=0, num_frames=0,
                      sampler=replace(sampler, guidance=float(sampler.guidance != 0)))

    def pictures(seed, first, *rest):
        given = dict(zip([name for name, *_ in shown[2:]], rest))
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(first + jnp.arange(batch_size))
        guidance = given.get("guidance", jnp.float32(0))
        images, finite, _ = program(model.weights, keys, given.get("labels"), guidance)
        return images, finite

    shapes = [jax.ShapeDtypeStruct(shape, dtype) for _, dtype, shape, _ in shown]
    exported = export.export(jax.jit(pictures), platforms=platforms)(*shapes)
    return exported, [{"name": name, "dtype": jnp.dtype(dtype).name, "shape": shape, "meaning": meaning}
                     for name, dtype, shape, meaning in shown]


def serialized(program: export.Exported) -> bytes:
    """The bytes that `jax.export.deserialize` reads. Raises UserError where the package flatbuffers is missing."""
    try:
        return bytes(program.serialize())
    except ImportError:
        raise UserError("writing programs needs the package flatbuffers: pip install flatbuffers") from None
