"""Errors a user can meet: each says what, why and what to do, and knows the command line's exit code."""


class LlamitaError(Exception):
    """A failure with a message for people; `exit_code` is what the command line returns for it."""

    exit_code = 1


class BrokenFileError(LlamitaError, ValueError):
    """A file is damaged, truncated or hostile."""


class NotFiniteError(LlamitaError, ArithmeticError):
    """A model's numbers are infinite or NaN."""


class UsageError(LlamitaError, ValueError):
    """An argument is wrong: a value, a name or a combination."""

    exit_code = 2


class NotFoundError(LlamitaError, FileNotFoundError):
    """A model, file or folder is not there, or only reachable over a network that is off."""

    exit_code = 3


class AccessError(LlamitaError, PermissionError):
    """The file system or the hub refuses access."""

    exit_code = 4


class MemoryShortError(LlamitaError, MemoryError):
    """The device has too little memory."""

    exit_code = 5


class UnsupportedError(LlamitaError, ValueError):
    """A thing this build, machine or version does not do."""

    exit_code = 6


class OverloadedError(LlamitaError):
    """Too many requests wait already; `retry_after` says after how many seconds to come back."""

    retry_after = 1


class QueueTimeoutError(OverloadedError):
    """The request waited too long for its turn."""


class ClosedError(LlamitaError):
    """The engine takes no more requests: it is being closed, or it has failed."""


class AbortedError(LlamitaError):
    """The request was aborted before its text was over."""


class OverdueError(LlamitaError, TimeoutError):
    """The request took longer than it was allowed to."""
