"""The names of the data sets, and the module of the room `data` that reads each: one row a set."""
import re

MODULES = {
    "mnist5k": "mnist5k",
    "photo_crops": "photographs",
    "photo_turns": "photographs",
    "photo_turns_grey": "photographs",
    "mnist": "prepared",
    "fashion_mnist": "prepared",
    "cifar10": "prepared",
    "scenes": "scenes",
    "iclevr": "iclevr",
}
NAMES = tuple(MODULES)
OWN = "folder:PATH, FILE.npz and MODULE:FUNCTION"
HELP = (f"{', '.join(NAMES)} (the first four and scenes come with the installation); or your own: folder:PATH, a "
        "folder of pictures, whose subfolders are classes or the splits train and test; FILE.npz with arrays images (n "
        "h w or n h w c; integers 0..255 or floats in [0, 1]) and, if you like, labels and label_names; or "
        "MODULE:FUNCTION, called with \"train\" or \"test\", which "
        "returns (images, labels), or None for a split that it does not have.")


def own_module(name: str) -> str | None:
    """The module of `data` for pictures of the user's own; None if the name is none of theirs."""
    if name.startswith("folder:"):
        return "folder"
    return "own" if name.endswith(".npz") or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) else None
