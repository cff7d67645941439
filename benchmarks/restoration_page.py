"""The page of benchmarks/restoration.py: tables made of result lines."""
import itertools
import re

import numpy as np
from scipy.stats import t as student

RETAKEN = "set12/01"
CONTROL = "BM3D"  # against which differences are taken, picture by picture
NOTES, END = "<!-- notes -->", "<!-- end of notes -->"
TITLES = {
    "sigma-15": "Gaussian noise, sigma 15 of 255", "sigma-25": "Gaussian noise, sigma 25 of 255",
    "sigma-50": "Gaussian noise, sigma 50 of 255",
    "cut-25": "Gaussian noise, sigma 25 of 255, cut off at black and white",
    "cut-50": "Gaussian noise, sigma 50 of 255, cut off at black and white",
    "poisson-30": "Poisson noise, 30 photons at white",
    "read-out": "Poisson noise, 30 photons at white, and read-out noise of sigma 20 of 255",
    "impulse-30": "Salt-and-pepper noise, 30 % of the pixels, no other noise; where they are is found first",
    "inpaint-50": "Inpainting, half of the pixels known, no noise",
    "inpaint-10": "Inpainting, a tenth of the pixels known, no noise",
    "superres-4": "Four times the resolution, no noise",
    "deblur-1.6": "Gaussian blur of 1.6 pixels and noise of sigma sqrt(2) of 255",
}

REFEREES = ("referee", "referee, untrained", "referee, untrained, with BM3D")
UNION = "cross-fit, then prior photos"
UNSEEN = ("superres-4", "deblur-1.6")  # tasks of which errors are those of A x, not of the picture
UNDONE = "cut-off undone"
AFTER = "then nonlocal Bayes"
BAYES = f"cross-fit, {AFTER}"
ONCE_MORE = "nonlocal Bayes, one pass more"  # as many as with an estimate before the last
BACK, PLUGGED = "known pixels put back", "plug-and-play"
PAIRS = (("cross-fit", "DIP"), (BAYES, "cross-fit"), (BAYES, "nonlocal Bayes"), (BAYES, CONTROL),
         (f"prior photos, {AFTER}", "prior photos, eight calls, turned"), (BAYES, "prior photos, eight calls, turned"),
         (BAYES, ONCE_MORE), (f"DIP-TV, {AFTER}", ONCE_MORE), (f"prior photos, {AFTER}", ONCE_MORE),
         (ONCE_MORE, "nonlocal Bayes"), (f"prior photos, {AFTER}", "nonlocal Bayes"),
         ("nonlocal Bayes", "prior photos, eight calls, turned"),
         (f"DIP-TV, {AFTER}", "DIP-TV"), (f"DIP-TV, {AFTER}", "nonlocal Bayes"), (f"DIP-TV, {AFTER}", CONTROL),
         ("nonlocal Bayes", "cross-fit"), ("nonlocal Bayes", f"cross-fit, {BACK}"), ("nonlocal Bayes", UNION),
         ("nonlocal Bayes", "self-diffusion"), ("nonlocal Bayes", "biharmonic"), (f"cross-fit, {BACK}", "cross-fit"),
         ("nonlocal Bayes", f"self-diffusion, {BACK}"), (f"self-diffusion, {BACK}", f"DIP, {BACK}"),
         (f"DIP-TV, {BACK}", "DIP-TV"),
         (f"DIP-TV, {AFTER}", f"DIP-TV, {BACK}"), ("nonlocal Bayes, then prior photos", "nonlocal Bayes"),
         ("nonlocal Bayes", f"BM3D, {PLUGGED}"), ("nonlocal Bayes", "prior photos, guided"),
         ("nonlocal Bayes", f"prior photos, {PLUGGED}"), (f"prior photos, {PLUGGED}", "prior photos, guided"),
         (f"nonlocal Bayes and prior photos, {PLUGGED}", "nonlocal Bayes"),
         (f"nonlocal Bayes and prior photos, {PLUGGED}", f"prior photos, {PLUGGED}"),
         ("self-diffusion", "DIP"), ("self-diffusion", "cross-fit"), (UNION, "cross-fit"),
         (UNION, "prior photos, guided"), (UNION, "prior photos, guided, 32 chains"),
         (UNION, "prior photos, guided, 96 chains"), (UNION, "cross-fit, 11 folds"),
         (UNION, "prior photos, eight calls, turned"),
         ("prior photos, guided, 96 chains", "prior photos, guided, 32 chains"), ("cross-fit, 11 folds", "cross-fit"),
         ("cross-fit, Adam, 12 folds", "cross-fit, Adam"), ("cross-fit", "cross-fit, Adam"),
         ("DIP-TV", "non-local means"), ("DIP-TV, Adam", "DIP-TV"), ("DIP-TV", "DIP"), ("DIP-TV", "self-diffusion"),
         (f"{UNION}, oracle", UNION), (UNION, "biharmonic, then prior photos"), (UNION, "biharmonic"),
         ("half cross-fit, half prior photos, guided", "cross-fit"),
         ("half cross-fit, half prior photos, guided", "prior photos, guided"),
         *((f"{name}, {UNDONE}", name) for name in
           ("BM3D", "non-local means", "prior photos, eight calls, turned", "cross-fit", BAYES)))
LOOKED_AT = {  # pictures that had been looked at before a method was fixed
    UNION: ("set12/01", "set12/02", "set12/03"), BAYES: ("set12/01", "set12/02", "set12/03", "set12/04"),
    f"DIP-TV, {AFTER}": ("set12/01", "set12/02"),
    f"nonlocal Bayes and prior photos, {PLUGGED}": tuple(f"set12/0{i}" for i in range(1, 7))}
KINDS = {  # of pictures on sheets
    "restoration_colour.png": "Pictures in colour at sigma 25",
    "restoration_impulses.png": "Grey pictures with salt-and-pepper noise",
    "restoration_holes.png": "Grey pictures of which half of the pixels are known",
    "restoration_blur.png": "Grey pictures, blurred"}
SOURCES = {"set12": "", "cbsd68": "Colour: "}  # before the titles


def source_of(line: dict) -> str:
    """The set that a line's picture is from."""
    return "cbsd68" if line["picture"].startswith("cbsd68/") else "set12"


def by_picture(lines: list[dict], row: str, what: str = "psnr") -> dict[str, float]:
    """The mean over seeds for every picture of a row."""
    found = {}
    for line in lines:
        if line["row"] == row:
            found.setdefault(line["picture"], []).append(line[what])
    return {picture: float(np.mean(values)) for picture, values in found.items()}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of a few pictures, and half the width of its 95 % interval by Student's t; nan of one, or of none."""
    if not values:
        return float("nan"), float("nan")
    values = np.asarray(values, np.float64)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(half)


def signed(values: list[float]) -> str:
    """A mean difference with its 95 % interval, which one picture does not have."""
    mean, half = interval(values)
    return f"{mean:+.2f}" if np.isnan(half) else f"{mean:+.2f} +- {half:.2f}"


def table(lines: list[dict], control: str = CONTROL) -> list[str]:
    """The rows of one task, the best mean first; a row with fewer pictures than others says so."""
    means = {row: by_picture(lines, row) for row in dict.fromkeys(line["row"] for line in lines)}
    most = max(map(len, means.values()))
    against = means.get(control) or means.get("nothing", {})
    text = [f"| method | PSNR | SSIM | less {control if control in means else 'nothing'}, 95 % interval | "
            "estimated less true PSNR, median, size | pictures x seeds | core seconds |",
            "|---|---|---|---|---|---|---|"]
    for row in sorted(means, key=lambda row: -np.mean(list(means[row].values()))):
        mine = [line for line in lines if line["row"] == row]
        shared = [picture for picture in means[row] if picture in against]
        less = signed([means[row][p] - against[p] for p in shared]) if shared else ""
        guess = [-10 * np.log10(max(line["error"], 1e-9)) - line["psnr"] for line in mine
                 if line["error"] is not None and line["task"] not in UNSEEN]
        estimate = f"{np.median(guess):+.2f}, {np.median(np.abs(guess)):.2f}" if guess else ""
        few = "" if len(means[row]) == most else "*"
        text.append(f"| {row}{few} | {np.mean(list(means[row].values())):.2f} | "
                    f"{np.mean(list(by_picture(lines, row, 'ssim').values())):.3f} | {less} | "
                    f"{estimate} | {len(means[row])} x {len({line['seed'] for line in mine})} | "
                    f"{np.median([line['core_seconds'] for line in mine]):.1f} |")
    return [*text, "", *(["\\* of fewer pictures than the others: its mean is not comparable, the difference is.", ""]
                         if any(len(found) < most for found in means.values()) else [])]


def regret(lines: list[dict], row: str) -> list[str]:
    """How far the referee's choice lies below the best of what it chose from, and its average above it, on pictures
    that all of these restored."""
    text = []
    chosen, stack = by_picture(lines, f"{row}, best"), by_picture(lines, f"{row}, average")
    names = next((line["weights"] for line in lines if line["row"] == f"{row}, average"), {})
    if not names:
        return text
    each = {name: by_picture(lines, name) for name in names}
    stack = {picture: psnr for picture, psnr in stack.items() if all(picture in found for found in each.values())}
    if not stack:
        return text
    best = {picture: max(found[picture] for found in each.values()) for picture in stack}
    single = max(np.mean([found[picture] for picture in stack]) for found in each.values())
    text.append(f"- {row}: its choice lies {np.mean([best[p] - chosen[p] for p in stack]):z.2f} dB (at most "
                f"{max(best[p] - chosen[p] for p in stack):.2f}) below the best method of each picture, its average "
                f"{np.mean(list(stack.values())) - single:+z.2f} dB from the best single method for all.")
    return text


def pairs(lines: list[dict]) -> list[str]:
    """Differences of two rows, picture by picture; of those that were found on some of the pictures, without these
    too."""
    means = {row: by_picture(lines, row) for row in dict.fromkeys(line["row"] for line in lines)}
    text = []
    for first, second in PAIRS:
        shared = [name for name in means.get(first, ()) if name in means.get(second, ())]
        later = [name for name in shared if name not in LOOKED_AT.get(first, ())]
        if not shared:
            continue
        found = [_difference(means[first], means[second], shared)]
        if later and len(later) < len(shared):
            fresh = _difference(means[first], means[second], later)
            found.append(f"without those on which the method was found {fresh}")
        text.append(f"- {first}, less {second}: {'; '.join(found)}")
    return [*text, ""] if text else []


def _difference(first: dict[str, float], second: dict[str, float], names: list[str]) -> str:
    return f"{signed([first[name] - second[name] for name in names])} dB (n = {len(names)})"


def without_the_retaken(lines: list[dict]) -> list[str]:
    """What the trained priors of photographs gain over the control without Set12's picture 01, whose scene
    scikit-image's `camera`, a photograph that they were trained on, shows retaken."""
    against, text = by_picture(lines, CONTROL), []
    for row in dict.fromkeys(line["row"] for line in lines if line["row"].startswith("prior photos")):
        means = by_picture(lines, row)
        differences = [means[name] - against[name] for name in means if name in against and name != RETAKEN]
        if differences:
            text.append(f"{row} {signed(differences)}")
    return [f"Without picture 01, whose scene a training photograph of the priors shows again, less {CONTROL}: "
            f"{'; '.join(text)}.", ""] if text else []


def columns_of(page: str) -> dict[str, list[str]]:
    """The sheets of pictures that a page shows: file -> names of its columns."""
    shown = re.findall(r"^Columns: (.*)\.\n\n!\[[^]]*\]\((.*)\)$", page, re.MULTILINE)
    return {name: columns.split("; ") for columns, name in shown}


def render(lines: list[dict], columns: dict[str, list[str]], before: str) -> str:
    """The page; what stood between its marks for notes is kept."""
    notes = before.partition(NOTES)[2].partition(END)[0] if NOTES in before else "\n"
    where = sorted({f"{line['origin']['machine']}, {line['origin']['date']}" for line in lines})
    text = [
        "# One picture restored, without training data and with a pretrained prior", "",
        "Rebuilt by `python benchmarks/restoration.py`, for colour with `--source cbsd68 --side 256 --pictures 20`, "
        "for larger grey pictures with `--side 256 --pictures 7`, which goes on where it stopped; a restoration is a "
        "line of `restoration.jsonl`.", "",
        "Grey pictures of Set12 (or photographs of scikit-image where it is absent) resized to 64x64, seven of them at "
        "their own 256x256, and pictures of "
        "CBSD68 in colour, in [0, 1]; PSNR and SSIM of the restored picture clipped to [0, 1], PSNR in dB. Noise is "
        "not clipped. Where its level is "
        "needed it is estimated from the picture (median of third differences); rows `told` know it. No method sees "
        "the clean picture; what has `prior photos` in its name was trained on other photographs, the rest on nothing. "
        "All methods of a task see the same noise; a seed changes it too. Differences are taken "
        "picture by picture; the interval is Student's over pictures. `estimated`: what the method says of its own "
        "error, where the picture itself was measured. Core seconds are those of "
        "all threads, median over pictures; the machine did other work meanwhile.", "",
        f"Made on {'; '.join(where)}.", "", NOTES + notes + END, ""]
    groups = sorted({(source_of(line), line["side"]) for line in lines}, key=lambda group: (group[0] != "set12", group))
    for (source, side), (task, title) in itertools.product(groups, TITLES.items()):
        mine = [line for line in lines if line["task"] == task and (source_of(line), line["side"]) == (source, side)]
        if mine:
            where = " out of the middle of pictures of CBSD68" if source == "cbsd68" else ""
            text += [f"## {SOURCES[source]}{title}, {side}x{side}{where}", "", *table(mine)]
            text += without_the_retaken(mine) if source == "set12" else []
            text += pairs(mine)
            found = [sentence for row in REFEREES for sentence in regret(mine, row)]
            text += [*found, ""] if found else []
    for name, shown in columns.items():
        text += [f"## {KINDS.get(name, 'Grey pictures at sigma 25')}", "",
                 "Columns: " + "; ".join(shown) + ".", "", f"![All methods, a picture to a row]({name})", ""]
    return "\n".join(text)
