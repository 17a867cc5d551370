"""The server's log: one line a request on stderr, without prompts, answers and keys."""

import json
import logging
import sys
import time

LOGGER = logging.getLogger("llamita.server")
LEVELS = ("debug", "info", "warning", "error")
MOST = 200  # characters of what a client sent


def quoted(text: str, most: int = MOST) -> str:
    """A client's text as a log may have it: no line ends, no escape sequences, not too long."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    plain = cut.encode("unicode_escape").decode("ascii")
    return plain if plain.isprintable() else repr(plain)


class _Lines(logging.Formatter):
    """2026-11-28 12:00:00 INFO message"""

    converter = time.localtime

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")


class _JsonLines(logging.Formatter):
    """An object a line, for programs that collect logs; what a message names is in fields of its own too."""

    def format(self, record: logging.LogRecord) -> str:
        named = record.args if isinstance(record.args, dict) else {}
        line = {"time": record.created, "level": record.levelname, "message": record.getMessage(), **named}
        return json.dumps(line)


def set_up(level: str, *, as_json: bool = False) -> None:
    """Let the server log to stderr from this level on, and what it stands on where something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else _Lines())
    # asyncio warns of clients that left while several events of a stream were sent, which is no news.
    for name, lowest in ((LOGGER.name, level), ("uvicorn.error", "warning"), ("asyncio", "error")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(lowest.upper())
        logger.propagate = False
