"""The tables of docs/results/together.md, between its marks; the text around them is written by hand."""
from pathlib import Path
from typing import Any

import numpy as np

BEGIN, END = "<!-- measured -->", "<!-- end -->"


def interval(values: dict[int, list[float]]) -> str:
    """Mean and 95 % interval over pictures (seeds of a picture are averaged first)."""
    means = np.array([np.mean(rows) for rows in values.values()])
    if len(means) < 2:
        return f"{means.mean():.2f}"
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}.get(len(means), 2.0)
    return f"{means.mean():.2f} ± {t * means.std(ddof=1) / np.sqrt(len(means)):.2f}"


def table(lines: list[dict[str, Any]]) -> list[str]:
    """One set and one denoiser: a row a method, a column a task; dB to the exact posterior mean, and coverage."""
    tasks, methods = (list(dict.fromkeys(line[key] for line in lines)) for key in ("task", "method"))
    rows = ["| method | " + " | ".join(tasks) + " | calls | s |", "|---" * (len(tasks) + 3) + "|"]
    means = {task: np.mean([line["exact"] for line in lines if line["task"] == task]) for task in tasks}
    rows.append("| *exact posterior mean, dB* | " + " | ".join(f"{means[task]:.2f}" for task in tasks) + " | | |")
    for method in methods:
        own, cells = [line for line in lines if line["method"] == method], []
        for task in tasks:
            gaps: dict[int, list[float]] = {}
            for line in own:
                if line["task"] == task:
                    gaps.setdefault(line["picture"], []).append(line["psnr"] - line["exact"])
            covered = [line["coverage"] for line in own if line["task"] == task and "coverage" in line]
            cells.append("" if not gaps else interval(gaps) + (f"; {100 * np.mean(covered):.0f} %" if covered else ""))
        rows.append(f"| {method} | " + " | ".join(cells) + f" | {np.median([line['calls'] for line in own]):.0f} | "
                    f"{np.median([line['seconds'] for line in own]):.2f} |")
    return rows


def write(lines: list[dict[str, Any]], page: Path) -> None:
    """Replaces what stands between the marks of the page."""
    text = []
    recipes = []
    for line in lines:
        if line["recipe"] not in recipes:
            recipes.append(line["recipe"])
    for recipe in recipes:
        for kind in dict.fromkeys(line["set"] for line in lines if line["recipe"] == recipe):
            own = [line for line in lines if line["recipe"] == recipe and line["set"] == kind]
            count = len({(line["picture"], line["seed"]) for line in own})
            text += [f"### Denoiser: {recipe['denoiser']}; pictures: {kind}",
                     f"{count} pictures and seeds, {recipe['samples']} chains of {recipe['calls']} calls, "
                     f"s = {recipe['deviation']}; {own[0]['where']}.", "", *table(own), ""]
    before, _, rest = (page.read_text() if page.exists() else f"{BEGIN}\n{END}").partition(BEGIN)
    page.write_text(before + "\n".join([BEGIN, *text, END]) + rest.partition(END)[2])
