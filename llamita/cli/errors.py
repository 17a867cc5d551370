"""What went wrong, in one sentence for people and one number for scripts."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llamita.cli import address_space, terminal
from llamita.errors import AccessError, LlamitaError, MemoryShortError, NotFoundError

INTERRUPTED = 130
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
NO_ADDRESSES = ("failed to map segment", *OUT_OF_MEMORY)  # the first of libraries that are loaded


def report(error: BaseException, words: Sequence[str]) -> int:
    """Say on stderr what an error means; returns the exit code. With --debug its traceback comes first."""
    causes = list(_chain(error))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):  # libraries wrap what interrupts their import
        terminal.restore()
        _close(sys.stdout)
        return INTERRUPTED
    if any(isinstance(cause, BrokenPipeError) for cause in causes):
        _close(sys.stdout)  # or the interpreter complains when it flushes at exit
        return 0
    if "--debug" in words or os.environ.get("LLAMITA_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, OSError):
        _close(sys.stdout)  # what could not be written will not be at exit either
    failure = explained(error)
    terminal.say(str(failure), style="red")
    return failure.exit_code


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once, while there is nothing to clean up.

    As an exception it may be lost, or become a crash, in libraries whose C++ calls Python during their import.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    try:
        terminal.restore()
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # after the ^C that the terminal shows
        sys.stderr.flush()
    finally:
        os._exit(INTERRUPTED)


def explained(error: BaseException) -> LlamitaError:
    """Any error as a LlamitaError, which has one sentence and an exit code."""
    text = " ".join(str(error).split())
    if isinstance(error, LlamitaError):
        kind = type(error)
        return kind(text)
    if (most := address_space.limit()) is not None and _lacks_addresses(error):
        return address_space.too_small(most)
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in OUT_OF_MEMORY):
        return MemoryShortError("out of memory: take a smaller model, --dtype bfloat16, or fewer tokens with -n")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{error.filename} does not exist: check the path")
    if isinstance(error, PermissionError):
        return AccessError(f"{error.filename} may not be read or written: check its owner and mode")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return LlamitaError("the disk that is written to is full: free some space and try again")
    text = text[:300] or "no details"
    return LlamitaError(f"{type(error).__name__}: {text}; this was not foreseen, --debug shows where it happened")


def _lacks_addresses(error: BaseException) -> bool:
    """Whether an error came from too little memory, under a limit; libraries that are not loaded have many words."""
    causes = list(_chain(error))
    said = " ".join(map(str, causes)).lower()
    return any(isinstance(cause, MemoryError) for cause in causes) or any(sign in said for sign in NO_ADDRESSES)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _close(stream: object) -> None:
    """Let everything that is still to be written go nowhere, where the stream is the process's own."""
    if stream is sys.__stdout__ and sys.__stdout__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
