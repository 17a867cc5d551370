"""Text that is piped in."""

import io
import os
import stat
import sys
from collections.abc import Iterator

from llamita.errors import UsageError


def is_piped() -> bool:
    """Whether stdin is a pipe, a file or a socket: not a keyboard, and not a device such as /dev/null."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (io.UnsupportedOperation, OSError):
        return isinstance(sys.stdin, io.TextIOWrapper)  # a stream in memory
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_text() -> str:
    """All of stdin, without the line end that `echo` adds to a text."""
    text = decoded(sys.stdin.buffer.read())
    return text.removesuffix("\n").removesuffix("\r")


def decoded(data: bytes) -> str:
    """Bytes of stdin as text; raises UsageError where they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}): convert it, for example with "
            "iconv -t utf-8"
        ) from None


def checked(text: str, what: str) -> str:
    """A text from the command line; raises UsageError where it is empty or was not UTF-8."""
    if not text.strip():
        raise UsageError(f"the {what} is empty: give some text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} is not UTF-8 text: convert it, for example with iconv -t utf-8") from None
    return text


def lines() -> Iterator[str]:
    """The lines of stdin without their ends, each as soon as it comes."""
    for line in sys.stdin.buffer:
        yield decoded(line).rstrip("\r\n")
