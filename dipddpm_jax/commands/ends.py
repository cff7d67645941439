"""How a command ends: a user's mistake is one line on stderr and exit status 2, an interruption one line and 130."""
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dipddpm_jax.errors import UserError


@contextmanager
def guarded(interrupted: str = "interrupted") -> Iterator[None]:
    """Around all that a command does; `interrupted` is what Ctrl-C leaves to say."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from None
