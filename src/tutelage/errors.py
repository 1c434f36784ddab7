"""The errors that reach a user, and the exit status each one stands for.

Everything raised on purpose derives from `TutelageError`. The command line prints its message in one
line, without a traceback, and leaves with its `exit_status`.
"""


class TutelageError(Exception):
    """Base of all errors raised on purpose."""

    exit_status = 1


class InputError(TutelageError, ValueError):
    """The user's configuration, data or models are wrong. The message says what to do next."""

    exit_status = 2


class DoesNotFitError(InputError):
    """Memory ran out where nothing can be done in smaller parts. The message says what needs how much."""


class DivergedError(TutelageError, ArithmeticError):
    """A loss, gradient or score was not finite; the weights of the last good step are kept."""

    exit_status = 3


class CheckpointError(TutelageError):
    """No checkpoint that verifies was found where one was needed."""

    exit_status = 4


class Stopped(TutelageError):
    """The run stopped before its end, asked to or by a fault around it; the same command goes on with it."""

    exit_status = 75
