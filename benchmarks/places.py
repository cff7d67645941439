"""Where the benchmarks and the tests look for files outside the checkout: the one place that knows.

`shared/` beside the checkout holds real data and all recordings of the PyTorch originals; a clone need not have it, and
whatever needs it is then skipped, with the reason said.
"""
from pathlib import Path

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared"
GOLDEN = REPO / "tests" / "golden", SHARED / "golden"  # the committed selection, and the whole set
MNIST = SHARED / "data" / "mnist"
ICLEVR = SHARED / "data" / "iclevr"
CIFAR10 = SHARED / "data" / "cifar10"
SET12 = SHARED / "data" / "dip" / "set12"
CBSD68 = SHARED / "data" / "dip" / "cbsd68"
F16 = SHARED / "data" / "dip" / "ulyanov" / "F16_GT.png"
CHECKPOINT = SHARED / "data" / "checkpoints" / "ddpm_pulfer" / "ddpm_mnist.pt"
CASES = SHARED / "cases"


def recording(name: str) -> Path | None:
    """The file of a recording, the committed one first; None where it is absent."""
    return next((path for folder in GOLDEN if (path := folder / f"{name}.npz").is_file()), None)
