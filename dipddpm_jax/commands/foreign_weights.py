"""Models from files of PyTorch weights: somebody's, for the network of a preset, or exported ones with their own."""
import sys
from pathlib import Path

from dipddpm_jax import data
from dipddpm_jax.commands import builders
from dipddpm_jax.commands.model import Model
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.errors import UserError
from dipddpm_jax.torch_files import StateDict, read_states
from dipddpm_jax.torch_weights import Misfit, fitting_prefixes, import_torch


def load_model(path: Path, config: TrainConfig | None = None, key: str | None = None) -> Model:
    """A `Model` of PyTorch weights: of an exported file, which says what it is, or for the network of a preset.

    For a preset, with labels if the weights have any. Of several sets of weights in the file, or under the dotted name
    `key` in it, the first that fits is taken, moving averages first; where others fit too that is said on stderr.
    Raises UserError when the file or its entries do not fit.
    """
    known = saved.exported(path) if config is None else None
    if config is None and known is None:
        raise UserError(f"{path} does not say which network it fits, as a file by `dipddpm-jax export` does")
    config, every = (config, _facts_of(config)) if known is None else (known[0], [known[1]])
    problem, states = None, read_states(path, key)
    for number, state in enumerate(states):
        for facts in every:
            network = builders.make_network(config.network, facts, config.schedule.num_steps)
            shapes = builders.variable_shapes(network, facts)
            try:
                weights = import_torch(state.tensors, shapes)
            except Misfit as error:
                problem = error if problem is None or error.entries < problem.entries else problem
                continue
            _say_which(path, state, fitting_prefixes(state.tensors, shapes), states[:number], states[number + 1 :])
            return Model(config, facts, network, weights)
    raise UserError(f"{path}: {problem}")


def _say_which(
    path: Path, taken: StateDict, prefixes: list[str], before: list[StateDict], after: list[StateDict]
) -> None:
    """One line on stderr if a file holds more than one set of weights."""
    name = ".".join(part for part in (taken.key, prefixes[0].strip(".")) if part)
    others = [state.key for state in after if 2 * len(state.tensors) > len(taken.tensors)]
    others += [".".join(part for part in (taken.key, prefix.strip(".")) if part) for prefix in prefixes[1:]]
    unfit = f"; {', '.join(state.key for state in before)} does not fit" if before else ""
    if others or unfit:
        rest = f"; there are also {', '.join(filter(None, others))} (--weights-key)" if any(others) else ""
        print(f"{path}: the weights under {name or 'no name'} are taken{unfit}{rest}", file=sys.stderr)


def _facts_of(config: TrainConfig) -> list[Facts]:
    """What the preset's data set would tell, without needing it: with its labels, and without."""
    known = data.describe(config.data)
    if known is None:
        raise UserError(f"what {config.data} holds is not known beforehand; name a preset of another data set")
    shape = known.image_shape
    if config.image_size:
        shape = config.image_size, config.image_size, shape[2]
    with_labels = [Facts(shape, known.label_names, known.several)] if config.labels else []
    return [*with_labels, Facts(shape)]
