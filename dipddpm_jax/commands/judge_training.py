"""Building a judge: train it by the resumable loop, measure its accuracy on held-out pictures, write its weights."""
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dipddpm_jax import records, torch_weights
from dipddpm_jax.checkpoints import numbered, unnumbered
from dipddpm_jax.commands.loop import ChunkReport, Pace, Row, newest_items, run_to_end
from dipddpm_jax.files import owned, writing
from dipddpm_jax.judging import judges, train_judge
from dipddpm_jax.judging.train_judge import Recipe

PACE = Pace(chunk=1, save_every=1)  # a pass takes seconds


class JudgeTraining:
    """A `loop.Job` whose steps are passes through a judge's training pictures."""

    def __init__(self, recipe: Recipe, seed: int, directory: Path):
        self.recipe, self.seed, self.key, self.total = recipe, seed, jax.random.key(seed), recipe.passes
        self.state = train_judge.start(recipe, self.key)
        if (items := newest_items(directory, self.items())) is not None:
            self.state = unnumbered(items["train"], self.state)
        length = len(recipe.pool(seed, 0)[1])
        self.run_pass = train_judge.make_pass(recipe, length)
        self.step = int(self.state.step) // (length // recipe.batch_size)

    def advance(self, count: int) -> tuple[int, Any]:
        """One pass, in one device call."""
        self.state, loss = self.run_pass(self.state, *self.recipe.pool(self.seed, self.step), self.key)
        self.step += count
        return self.step, loss

    def report(self, chunk: tuple[int, Any], seconds: float) -> ChunkReport:
        """The mean loss of a pass."""
        step, loss = chunk[0], float(chunk[1])
        problem = None if np.isfinite(loss) else f"the loss of the judge is not finite in pass {step}"
        return ChunkReport([{"step": step, "loss": loss}], f"loss {loss:.4f}", problem)

    def items(self) -> dict[str, PyTree]:
        """The whole state."""
        return {"train": numbered(self.state)}

    def score(self) -> Row:
        """Nothing: the last pass is what counts."""
        return {}

    def show(self) -> None:
        """Nothing."""


def fit_judge(recipe: Recipe, seed: int, directory: Path, minutes: float | None, again: str) -> dict[str, PyTree]:
    """The trained variables. Raises Stopped when the minutes are up or a signal came, and UserError when another
    process trains the same judge; the next call with `directory` goes on."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with owned(directory):
        job = JudgeTraining(recipe, seed, directory)
        run_to_end(job, directory, PACE._replace(budget=minutes), again, unit="pass")
    return {"params": job.state.params, "batch_stats": job.state.batch_stats}


def build_judge(command: Any) -> str:
    """`dipddpm-jax judge`: trains, measures, writes; returns what to tell the user. Raises UserError and Stopped."""
    recipe = train_judge.recipe(command.name, command.data_dir)
    directory = judges.judges_folder() / f"{command.name}-{command.seed}"
    out = command.out or judges.path_of(command.name)
    began = time.process_time()
    again = f"dipddpm-jax judge {shlex.quote(command.name)} --seed {command.seed} (the same options as before)"
    variables = fit_judge(recipe, command.seed, directory, command.minutes, again)
    shape = tuple(recipe.held.images.shape[1:])
    state = {k: v.astype(np.float16) for k, v in torch_weights.export_torch(variables).items()
             if not k.endswith(torch_weights.COUNTER)}
    judge = judges.Judge(command.name, recipe.network, torch_weights.import_torch(
        {k: v.astype(np.float32) for k, v in state.items()}, judges.template(recipe.network, shape)), float("nan"),
        shape, recipe.held.label_names, recipe.held.labels.ndim == 2)
    judge = judge._replace(accuracy=judges.accuracy(judge, recipe.held.images, recipe.held.labels))
    judges.save_judge(judge, state, out, {
        "data": recipe.held.name, "held_out": len(recipe.held.images),
        "pictures": recipe.passes * len(recipe.pool(command.seed, 0)[1]),
        "processor_seconds": round(time.process_time() - began), **records.provenance(command.seed)})
    shutil.rmtree(directory, ignore_errors=True)
    return (f"{out}: accuracy {100 * judge.accuracy:.2f} % on {len(recipe.held.images)} held-out pictures of "
            f"{recipe.held.name}, seed {command.seed}")
