"""The one exception that a command prints as a clear line, without a traceback, before it exits with status 2."""


class UserError(Exception):
    """What was wrong with the user's input, and what would be right, in one or two lines."""
