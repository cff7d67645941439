"""Building a judge: train it, measure its accuracy on held-out pictures, write its weights."""
import shutil
import time
from typing import Any

import numpy as np

from dipddpm_jax import records, torch_weights
from dipddpm_jax.judging import judges, train_judge


def build_judge(command: Any) -> str:
    """`dipddpm-jax judge`: trains, measures, writes; returns what to tell the user. Raises UserError."""
    recipe = train_judge.recipe(command.name, command.data_dir)
    directory = judges.judges_folder() / f"{command.name}-{command.seed}"
    out = command.out or judges.path_of(command.name)
    began = time.process_time()
    variables = train_judge.fit(recipe, command.seed, directory, command.minutes)
    if variables is None:
        return f"not finished; the same command goes on from {directory}"
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
