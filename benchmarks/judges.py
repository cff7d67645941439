"""How the judges answer real pictures, and real pictures that get worse and worse: docs/results/judges.md.

    python benchmarks/judges.py [digits] [crops] [scenes] [--count N] [--seeds N] [--pages]

Real pictures are corrupted and compared with other real pictures, as `comparison.compare` compares samples. One line a
judge is kept in judges.jsonl, so that one can be done at a time.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

REPO = Path(__file__).parents[1]
RESULTS = REPO / "docs" / "results"
sys.path.insert(0, str(REPO))

from dipddpm_jax import data, devices, records  # noqa: E402
from dipddpm_jax.judging import comparison, judges, metrics  # noqa: E402

NOISE = (0, 8, 16, 32, 64, 128)  # standard deviation, of 255
BLUR = (0, 0.5, 1, 1.5, 2, 4)  # standard deviation in pixels
MISSING = (0.0, 0.2, 0.4, 0.6, 0.8)  # share of the classes that no picture shows
SIZES = (50, 100, 200, 500, 1000, 2000)


def noisy(images, sigma, rng):
    return (images + sigma * rng.standard_normal(images.shape, np.float32)).round().clip(0, 255).astype(np.uint8)


def blurred(images, sigma, rng):
    return ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0)).round().astype(np.uint8)


def without(labels, shares):
    """For each share the pictures that show none of so many of the first classes."""
    rows = judges.one_hot(labels, int(labels.max()) + 1) if labels.ndim == 1 else labels
    return [np.flatnonzero(rows[:, : round(share * rows.shape[1])].sum(1) == 0) for share in shares]


class Set:
    """Real pictures, with the judge's features of them."""

    def __init__(self, name: str):
        self.judge = judges.load_judge(name)
        self.train, self.held = (data.load(self.judge.record["data"], split) for split in ("train", "test"))
        self.seen, _ = judges.look(self.judge, self.train.images)
        self.held_seen, _ = judges.look(self.judge, self.held.images)


def distances(a, b):
    rows = comparison.KERNEL_ROWS
    return {"fd": metrics.frechet_distance(a, b), "kid": 1000 * metrics.kernel_distance(a[:rows], b[:rows])}


def corruption(it: Set, count: int, seed: int) -> list[dict]:
    """One row a kind and level; the pictures, what they are compared with and the noise depend on the seed."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(it.train.images))
    probe, reference = order[:count], it.seen[order[count:]]
    images, labels, rows = it.train.images[probe], it.train.labels[probe], []
    for kind, levels, change in (("noise", NOISE, noisy), ("blur", BLUR, blurred)):
        for level in levels:
            seen, found = judges.look(it.judge, change(images, level, rng))
            wanted = judges.one_hot(labels, found.shape[1])
            rows.append({"kind": kind, "level": level, **distances(seen, reference),
                         "accuracy": metrics.label_accuracy(found, wanted),
                         "confidence": comparison.confidence(it.judge, found)})
    left = without(labels, MISSING)
    least = min(map(len, left))  # so many at every level: only equal n may be compared
    for share, those in zip(MISSING, left):
        chosen = probe[rng.permutation(those)[:least]]
        rows.append({"kind": "missing", "level": share, **distances(it.seen[chosen], reference), "n": least})
    return rows


def shuffled(labels, rng):
    """A random order; of classes each has its share from the start, so that chance in them adds nothing."""
    order = rng.permutation(len(labels))
    if labels.ndim > 1:
        return order
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = labels[order] == label
        place[mine] = (np.arange(mine.sum()) + 0.5) / mine.sum()
    return order[np.argsort(place, kind="stable")]


def sizes(it: Set, seed: int) -> list[dict]:
    """Random real pictures in the place of samples."""
    rng, rows = np.random.default_rng(100 + seed), []
    for n in SIZES:
        order = rng.permutation(len(it.seen))
        if n <= len(order) // 2:
            rows.append({"n": n, **distances(it.seen[order[:n]], it.seen[order[n:]])})
    return rows


def unseen(it: Set, seed: int) -> dict:
    """All held-out pictures in the place of samples, and as many that the judge was trained on."""
    order, n = shuffled(it.train.labels, np.random.default_rng(200 + seed)), len(it.held_seen)
    return {"n": n, "held": distances(it.held_seen, it.seen[order[n:]]),
            "trained": distances(it.seen[order[:n]], it.seen[order[n:]])}


def measure(name: str, count: int, seeds: int) -> dict:
    """All of one judge."""
    began, it = time.perf_counter(), Set(name)
    count = min(count, len(it.train.images) // 2)
    record = {key: it.judge.record[key] for key in ("network", "widths", "data", "seed", "held_out", "pictures",
                                                    "date", "machine")}
    return {"judge": name, "accuracy": it.judge.accuracy, "features": it.seen.shape[1],
            "kilobytes": round(judges.path_of(name).stat().st_size / 1000), "record": record, "count": count,
            "seeds": seeds, "corruption": [corruption(it, count, seed) for seed in range(seeds)],
            "sizes": [sizes(it, seed) for seed in range(seeds)],
            "unseen": [unseen(it, seed) for seed in range(seeds)], "reference": len(it.seen) - count,
            "seconds": round(time.perf_counter() - began), **records.provenance()}


def cell(values: list, digits: int = 2) -> str:
    """Mean and, of several, standard deviation."""
    if any(value is None for value in values):
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def grows(runs: list[list[dict]], kind: str, key: str) -> str:
    """In how many seeds a distance grows at every step of a corruption."""
    values = [[row[key] for row in rows if row["kind"] == kind] for rows in runs]
    return f"{sum(bool((np.diff(v) > 0).all()) for v in values)} of {len(values)}"


TITLES = {"noise": ("Gaussian noise", "standard deviation, of 255"), "blur": ("Gaussian blur", "standard deviation in "
          "pixels"), "missing": ("missing classes", "share of the classes that no picture shows")}


def page_of(r: dict) -> list[str]:
    """The part of the page about one judge."""
    name, record, runs = r["judge"], r["record"], r["corruption"]
    lines = [f"## {name}", "",
             f"{record['network']} with widths {', '.join(map(str, record['widths']))}, {r['features']} features, "
             f"{r['kilobytes']} kB; trained on {record['pictures']} pictures of `{record['data']}` (seed "
             f"{record['seed']}) by `python -m dipddpm_jax judge {name}` "
             f"({record['machine']}, {record['date']}). Accuracy on {record['held_out']} held-out pictures: "
             f"**{100 * r['accuracy']:.2f} %**.",
             "", f"n = {r['count']} changed pictures beside {r['reference']} other real ones, {r['seeds']} seeds.", ""]
    for kind, (title, unit) in TITLES.items():
        least = [row.get("n") for row in runs[0] if row["kind"] == kind][0]
        lines += [f"| {title}: {unit}{f' (n = {least})' if least else ''} | FD({name}) | KID({name}) x 1000 | accuracy "
                  "| mean confidence |", "|---" * 5 + "|"]
        for i, row in enumerate(runs[0]):
            if row["kind"] == kind:
                cells = [cell([run[i].get(key) for run in runs], digits)
                         for key, digits in (("fd", 3), ("kid", 2), ("accuracy", 3), ("confidence", 3))]
                lines.append(f"| {row['level']:g} | " + " | ".join(cells) + " |")
        fd, kid = (grows(runs, kind, key) for key in ("fd", "kid"))
        lines += ["", f"Grows at every step: FD in {fd} seeds, KID in {kid}.", ""]
    lines += ["| n real pictures | FD | KID x 1000 |", "|---" * 3 + "|"]
    for i, row in enumerate(r["sizes"][0]):
        cells = [cell([run[i][key] for run in r["sizes"]], digits) for key, digits in (("fd", 3), ("kid", 2))]
        lines.append(f"| {row['n']} | " + " | ".join(cells) + " |")
    fd, other_fd, kid, other_kid = (cell([run[part][key] for run in r["unseen"]], digits) for key, digits in
                                    (("fd", 3), ("kid", 2)) for part in ("held", "trained"))
    lines += ["", f"All {r['unseen'][0]['n']} held-out pictures in the place of samples: FD {fd}, KID x 1000 {kid}. As "
              f"many other pictures, with the same share of each class: FD {other_fd}, KID x 1000 {other_kid}."]
    versions = ", ".join(f"{key} {value}" for key, value in r["versions"].items())
    return [*lines, "", f"Measured in {r['seconds']} s: {r['machine']}; {versions}; {r['date']}.", ""]


INTRO = """# The judges, judged

A judge is a small classifier that a command of this repository trains. Pictures are compared in the features of its
last layer: FD(judge) is the Fréchet distance, KID(judge) the kernel distance. Neither can be compared with a published
FID, nor with one another between judges.

To be of use, a distance must be near its floor for real pictures and grow with damage. Below, real pictures are
damaged more and more, and take the place of samples; the first row of each table is the floor. FD falls with the number
of pictures (last table), so that only equal n may be compared; KID does not. Part of the floor is chance in how many
pictures of each class there are: samples with equal shares of all classes would come out below it, so that
`dipddpm-jax evaluate` draws real pictures with the samples' classes where each has one.

Pictures that a judge was not trained on stand below its last table: were they further from the rest than others are, so
much of a distance would be the judge's own. `digits` and `crops` saw the same training pictures again and again,
`scenes` new ones in every pass. All three saw them shifted by up to two pixels and with a little noise: judges that
clean pictures alone have taught misread slightly noisy ones.

`crops` says from which of five photographs a crop is. That is all the labels there are without a download: its features
know colours and textures, no objects. Training crops overlap by half, which makes its floor low, and held-out crops are
from other parts of the photographs, which stand apart by their contents too.
"""


def write_page(results: list[dict]) -> None:
    """docs/results/judges.md."""
    text = [INTRO, *(line for r in results for line in page_of(r)), "Rebuilt by `python benchmarks/judges.py`.", ""]
    (RESULTS / "judges.md").write_text("\n".join(text))


def main() -> None:
    """Measures the judges that are named, and writes the page of all that were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[], metavar="judge", help=f"default: {', '.join(judges.SHIPPED)}")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pages", action="store_true", help="measure nothing, write the page again")
    args = parser.parse_args()
    devices.set_up()
    log = RESULTS / "judges.jsonl"
    if args.pages:
        write_page(records.read_lines(log))
        return
    for name in args.names or judges.SHIPPED:
        result = measure(name, args.count, args.seeds)
        kept = [r for r in records.read_lines(log) if r["judge"] != name]
        results = sorted([*kept, result], key=lambda r: judges.SHIPPED.index(r["judge"]))
        records.write_lines(log, results)
        write_page(results)
        print("\n".join(page_of(result)))


if __name__ == "__main__":
    main()
