"""docs/results/few_steps.md: how good pictures are after few network calls, by a teacher and by few-step models.

    python benchmarks/few_steps.py add EVALUATION.json WHAT    a line of what `evaluate` wrote; WHAT names the row
    python benchmarks/few_steps.py time RUN [--count N]        a line: seconds for so many pictures, compiled before
    python benchmarks/few_steps.py page

Lines are kept in docs/results/few_steps.jsonl, and every call rebuilds the page from them.
"""
import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

from dipddpm_jax import devices, records  # noqa: E402
from dipddpm_jax.commands.labels import default_labels  # noqa: E402
from dipddpm_jax.commands.model import draw, load_run  # noqa: E402
from dipddpm_jax.config import saved  # noqa: E402
from dipddpm_jax.pretrained import PRIORS  # noqa: E402

LINES = REPO / "docs" / "results" / "few_steps.jsonl"
PAGE = REPO / "docs" / "results" / "few_steps.md"
KEPT = ("n", "fd", "spread", "floor", "label_accuracy", "precision", "recall", "sampler", "network_calls", "seed",
        "data", "reference", "machine", "date")


def training_of(workdir: Path) -> dict[str, Any]:
    """How a few-step model was made: its options, its steps, and the seconds that they took."""
    _, config, _ = saved.load(workdir / "config.json")
    few, seconds, before = config.few_step, 0.0, 0
    for row in records.read_lines(workdir / "metrics.jsonl"):
        if row.get("images_per_s"):
            seconds += (row["step"] - before) * config.batch_size / row["images_per_s"]
            before = row["step"]
    start = config.start if "/" not in str(config.start) else "RUN"
    own = PRIORS[start].data if start in PRIORS else None
    data = [] if config.data == own else ["--data", config.data]
    command = ["python", "train.py", "few-step", "--from", start, *data, "--calls", few.calls, "--hops", few.hops,
               "--steps", config.steps, "--batch-size", config.batch_size, "--seed", config.seed]
    return {"train": shlex.join(map(str, command)), "minutes": round(seconds / 60, 1)}


def add(what: str, evaluation: Path) -> None:
    """One line of evaluation.json, which lies in a folder of the run or is of a prior."""
    found = json.loads(evaluation.read_text())
    line = {"what": what, **{key: found[key] for key in KEPT if key in found}}
    run = Path(found["source"].partition(" of ")[2]) if found["source"].startswith("step ") else None
    if run is not None and saved.load(run / "config.json")[1].few_step is not None:
        line |= training_of(run)
    records.append_lines(LINES, [line])


def timed(workdir: Path, count: int, batch_size: int) -> None:
    """Draws `count` pictures once compiled, and adds the seconds by the clock and of processor time."""
    devices.set_up()
    model = load_run(workdir)
    labels, sampler = default_labels(model.facts, count, None), model.config.sampler
    draw(model, sampler, batch_size, 0, labels[:batch_size], 0, batch_size)
    began, worked = time.perf_counter(), time.process_time()
    draw(model, sampler, count, 0, labels, 0, batch_size)
    origin = records.provenance(0)
    records.append_lines(LINES, [{"seconds": time.perf_counter() - began, "core_seconds": time.process_time() - worked,
                                  "count": count, "batch_size": batch_size, "network_calls": sampler.num_steps,
                                  "machine": origin["machine"], "date": origin["date"]}])


def row(line: dict[str, Any], best: float) -> str:
    """A line of the table; FD also as a multiple of the teacher's with most calls."""
    sampler = line["sampler"]
    guided = f", guidance {sampler['guidance']:g}" if sampler["guidance"] else ""
    return (f"| {line['what']} | {sampler['name']}, {sampler['num_steps']} steps{guided} | {line['network_calls']} | "
            f"{line['fd']:.3f} ± {line['spread']:.3f} | {line['fd'] / best:.2f} | {line['label_accuracy']:.3f} | "
            f"{line['precision']:.3f} | {line['recall']:.3f} |")


INTRO = """# Few network calls

How good pictures are that take few calls of the network: those of the pretrained prior `digits`, whose guidance asks
the network twice a step, and of models that `python train.py few-step --from digits` made from it, which have the
guidance in their weights and ask once. Below: pictures of two calls each.

![pictures of two calls](few_steps.png)
"""


def page(lines: list[dict[str, Any]]) -> str:
    """The page, from the lines alone."""
    times = [line for line in lines if "seconds" in line]
    judged = sorted((line for line in lines if "fd" in line), key=lambda line: -line["network_calls"])
    first = judged[0]
    text = [INTRO, "| model | sampler | calls | FD | FD / that of most calls | label accuracy | precision | recall |",
            "|---" * 8 + "|", *(row(line, first["fd"]) for line in judged), "",
            f"n = {first['n']} pictures beside {first['reference']} of `{first['data']}`; FD in the features of the "
            f"judge `digits`, whose floor (real pictures in their place) is {first['floor']:.3f}; seed "
            f"{', '.join(sorted({str(line['seed']) for line in judged}))}.", ""]
    for line in {line["train"]: line for line in judged if "train" in line}.values():
        text += [f"    {line['train']}", "", f"took {line['minutes']:.0f} minutes by the clock, of a core that other "
                 "programs shared.", ""]
    text += [f"{line['count']} pictures of {line['network_calls']} calls, in batches of {line['batch_size']}, took "
             f"{line['seconds']:.1f} s by the clock and {line['core_seconds']:.1f} s of processor time once compiled "
             f"({line['machine']}, {line['date']})." for line in times]
    where = sorted({f"{line['machine']}, {line['date']}" for line in judged})
    text += ["", f"Measured by `python -m dipddpm_jax evaluate` on {'; '.join(where)}. Each line is kept by "
             "`python benchmarks/few_steps.py add`, and the page rebuilt by `python benchmarks/few_steps.py page`.", ""]
    return "\n".join(text)


def main() -> None:
    """Adds a line, or rebuilds the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("add", "time", "page"))
    parser.add_argument("path", nargs="?", type=Path, help="evaluation.json to add, or the run to time")
    parser.add_argument("what", nargs="?", help="of an evaluation: the row's name")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    if args.do == "add":
        add(args.what, args.path)
    if args.do == "time":
        timed(args.path, args.count, args.batch_size)
    PAGE.write_text(page(records.read_lines(LINES)))


if __name__ == "__main__":
    main()
