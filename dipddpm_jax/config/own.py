"""MODULE:FUNCTION, the name of a user's own code on the command line."""
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from dipddpm_jax.errors import UserError


def own_function(option: str, name: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION names; modules of the current folder are found too.

    Raises UserError, which begins with the option, when there is none or when importing it fails.
    """
    module_name, _, attribute = name.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{option} {name}: there is no module {error.name} here or among those installed") from None
    except Exception as error:  # whatever the user's code raises
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{option} {name}: importing {module_name} failed with {what}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{option} {name}: {module_name} has no function {attribute!r}; it has {', '.join(names[:20])}")
    return function
