"""The tables of docs/results/together.md, between its marks; the text around them is written by hand."""
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

BEGIN, END = "<!-- measured -->", "<!-- end -->"
DIFFUSION = ("one step", "truncated, ancestral", "truncated, 12 times the chains", "PiGDM, matched",
             "PiGDM, matched, 3 times the chains", "PiGDM", "PiGDM, weighted", "plug-and-play", "DDNM+", "DiffPIR",
             "DPS", "DAPS, s/a", "decoupled, matched")
SHAPED, SEEN_FIRST = "guided start: cross-fit, thrice the error", 4
LONGER = "cross-fit, 9 fits"  # for three times the seconds of "cross-fit"
UNIONS = {  # row: what of it there would be without a diffusion prior
    "start: non-local means, rule": "non-local means",
    "start: non-local means, oracle": "non-local means",
    "start: cross-fit, rule": "cross-fit",
    "start: cross-fit, oracle": "cross-fit",
    "guided start: cross-fit, rule": "cross-fit",
    "guided start: cross-fit, thrice the error": "cross-fit",
    "guided start: cross-fit, oracle": "cross-fit",
    "half cross-fit, half diffusion": "cross-fit",
    "half cross-fit, half PiGDM": "cross-fit",
    "referee: cross-fit and diffusion": "cross-fit",
    "guided fit": "cross-fit",
    "adapted prior": "cross-fit",
    "learned start": "cross-fit",
    "educated start": "cross-fit",
    "self-diffusion from the prior": "cross-fit",
}


def interval(values: dict[int, list[float]]) -> str:
    """Mean and 95 % interval over pictures (seeds of a picture are averaged first)."""
    means = np.array([np.mean(rows) for rows in values.values()])
    if len(means) < 2:
        return f"{means.mean():.2f}"
    return f"{means.mean():.2f} ± {student.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)):.2f}"


def by_picture(pairs: list[tuple[dict[str, Any], float]]) -> dict[int, list[float]]:
    """The values of each picture."""
    found: dict[int, list[float]] = {}
    for line, value in pairs:
        found.setdefault(line["picture"], []).append(value)
    return found


def table(lines: list[dict[str, Any]]) -> list[str]:
    """One set and one denoiser: a row a method, a column a task; dB to the exact posterior mean, and coverage."""
    tasks, methods = (list(dict.fromkeys(line[key] for line in lines)) for key in ("task", "method"))
    rows = ["| method | " + " | ".join(tasks) + " | calls | s |", "|---" * (len(tasks) + 3) + "|"]
    bounds = {task: {(line["picture"], line["seed"]): line["exact"] for line in lines if line["task"] == task}
              for task in tasks}
    rows.append("| *exact posterior mean, dB* | " + " | ".join(
        f"{np.mean(list(bounds[task].values())):.2f}, n = {len({picture for picture, _ in bounds[task]})}"
        for task in tasks) + " | | |")
    for method in methods:
        own, cells = [line for line in lines if line["method"] == method], []
        for task in tasks:
            here = [line for line in own if line["task"] == task]
            covered = [line["coverage"] for line in here if "coverage" in line]
            fewer = len({line["picture"] for line in here})
            few = f" (n = {fewer})" if here and fewer < len({picture for picture, _ in bounds[task]}) else ""
            cells.append("" if not here else interval(by_picture([(one, one["psnr"] - one["exact"]) for one in here]))
                         + (f"; {100 * np.mean(covered):.0f} %" if covered else "") + few)
        rows.append(f"| {method} | " + " | ".join(cells) + f" | {np.median([line['calls'] for line in own]):.0f} | "
                    f"{np.median([line['seconds'] for line in own]):.2f} |")
    return rows


def gain(lines: list[dict[str, Any]], union: str) -> str | None:
    """PSNR of a union of two less that of the better of its parts, the one whose mean is higher in these very lines;
    None where no line of the union has its parts beside it. The lines are those of one set, task and denoiser. A way to
    restore by diffusion alone counts as a part if it has every picture that the union has, and so do more fits."""
    where = {}
    for line in lines:
        where.setdefault(line["method"], {})[line["picture"], line["seed"]] = line
    fit = where.get(UNIONS[union], {})
    common = [place for place in where.get(union, {}) if place in fit and any(
        place in where.get(name, {}) for name in DIFFUSION)]
    alone = [where[name] for name in DIFFUSION if name in where and all(place in where[name] for place in common)]
    if not common or not alone:
        return None
    longer = where.get(LONGER, {}) if UNIONS[union] == "cross-fit" else {}
    parts = [fit, *alone, *([longer] if all(place in longer for place in common) else [])]
    best = max(parts, key=lambda part: np.mean([part[place]["psnr"] for place in common]))
    name = best[common[0]]["method"]
    differences = by_picture([(where[union][place], where[union][place]["psnr"] - best[place]["psnr"])
                              for place in common])
    return f"{interval(differences)} ({name}; n = {len(differences)})"


def gains(lines: list[dict[str, Any]]) -> list[str]:
    """Of one set and one denoiser: a row a union, a column a task."""
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    found = {union: [gain([line for line in lines if line["task"] == task], union) for task in tasks]
             for union in UNIONS}
    kept = [i for i in range(len(tasks)) if any(cells[i] for cells in found.values())]
    if not kept:
        return []
    return ["Union less the better of its two parts, dB:", "",
            "| union | " + " | ".join(tasks[i] for i in kept) + " |", "|---" * (len(kept) + 1) + "|",
            *(f"| {union} | " + " | ".join(cells[i] or "" for i in kept) + " |"
              for union, cells in found.items() if any(cells)), ""]


def from_each_part(lines: list[dict[str, Any]]) -> list[str]:
    """Of one set and one denoiser: `SHAPED` less every other row, a column a task; in brackets without the pictures on
    which the level that it begins at was seen to be too low."""
    where: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for line in lines:
        where.setdefault((line["method"], line["task"]), {})[line["picture"], line["seed"]] = line["psnr"]
    tasks = [task for method, task in where if method == SHAPED]
    if not tasks:
        return []

    def cell(method: str, task: str) -> str:
        ours, other = where[SHAPED, task], where.get((method, task), {})
        common = [place for place in ours if place in other]
        if len(common) < 2:
            return ""
        found = {part: interval(by_picture([({"picture": place[0]}, ours[place] - other[place]) for place in places]))
                 for part, places in (("all", common), ("later", [p for p in common if p[0] >= SEEN_FIRST]))
                 if len(places) > 1}
        later = f"; {found['later']}" if "later" in found and len(common) > SEEN_FIRST + 1 else ""
        return f"{found['all']} (n = {len(common)}{later})"

    rows = {method: [cell(method, task) for task in tasks] for method in dict.fromkeys(line["method"] for line in lines)
            if method not in (SHAPED, "exact posterior")}
    return [f"*{SHAPED}* less each other row, dB; behind the number of pictures, without the first {SEEN_FIRST}:", "",
            "| less | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|",
            *(f"| {method} | " + " | ".join(cells) + " |" for method, cells in rows.items() if any(cells)), ""]


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
            others = "".join(f", {key} {value}" for key, value in recipe.items()
                             if key not in ("denoiser", "samples", "calls", "deviation"))
            where = "; ".join(sorted({line["where"] for line in own}))
            pictures, seeds = (len({line[key] for line in own}) for key in ("picture", "seed"))
            text += [f"### Denoiser: {recipe['denoiser']}; pictures: {kind}",
                     f"At most {pictures} pictures and {seeds} seeds, {recipe['samples']} chains of {recipe['calls']} "
                     f"calls, s = {recipe['deviation']}{others}; {where}.", "", *table(own), "", *gains(own),
                     *from_each_part(own)]
    before, _, rest = (page.read_text() if page.exists() else f"{BEGIN}\n{END}").partition(BEGIN)
    page.write_text(before + "\n".join([BEGIN, *text, END]) + rest.partition(END)[2])
