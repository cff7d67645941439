"""Models to start from: pretrained priors, runs and exported files, and whether their weights fit a new run."""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree

from dipddpm_jax import pretrained
from dipddpm_jax.commands import builders
from dipddpm_jax.commands.foreign_weights import load_model
from dipddpm_jax.commands.model import Model, load_run
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.errors import UserError


def load_prior(name: str) -> Model:
    """A pretrained model that comes with the package, as `load_run` gives one of a run. Raises UserError."""
    return load_model(pretrained.path_of_prior(name))


def load_start(start: str) -> Model:
    """The model that --from names: a prior, the newest checkpoint of a run, or an exported file. Raises UserError."""
    pretrained.configuration_of_start(start)  # says what is wrong
    if start in pretrained.PRIORS:
        return load_prior(start)
    return load_run(start) if Path(start).is_dir() else load_model(Path(start))


def starting_variables(config: TrainConfig, network: nn.Module, facts: Facts) -> PyTree | None:
    """Parameters and other collections that a run starts from; None for one that starts from random weights.

    Raises UserError when those of `config.start` are another network's.
    """
    if config.start is None:
        return None
    model = load_start(config.start)
    wanted = builders.variable_shapes(network, facts)
    found = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32 if np.issubdtype(a.dtype, np.floating) else a.dtype),
                         dict(model.weights))
    shapes = [jax.tree.map(lambda a: a.shape, dict(tree)) for tree in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise UserError(f"--from {config.start} does not fit: {'; '.join(_misfits(model, config, facts))}")
    return found


def _misfits(model: Model, config: TrainConfig, facts: Facts) -> list[str]:
    """In what the two networks differ, in words."""
    before, now = (type(c.network).__name__ for c in (model.config, config))
    if before != now:
        return [f"its network is {before}, this run's is {now}"]
    said = saved.differences(model.config.network, config.network, "network.")
    for what, a, b in (("channels", model.facts.image_shape[-1], facts.image_shape[-1]),
                       ("labels", len(model.facts.label_names), len(facts.label_names))):
        if a != b:
            said.append(f"{what} ({a} before, {b} now)")
    return said or ["its arrays have other shapes than those of this run's network"]
