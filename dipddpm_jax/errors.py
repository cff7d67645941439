"""The one exception that a command prints as a clear line, without a traceback, before it exits with status 2."""
import difflib
from collections.abc import Collection


class UserError(Exception):
    """What was wrong with the user's input, and what would be right, in one or two lines."""


def closest(name: str, known: Collection[str]) -> str:
    """"did you mean X? " for the known name that is most like `name`, or nothing."""
    found = difflib.get_close_matches(name, known, 1)
    return f"did you mean {found[0]}? " if found else ""
