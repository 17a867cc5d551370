"""Lines of the log."""

import json
import logging
from collections.abc import Iterator

import pytest

from llamita.server.log import quoted, set_up


@pytest.fixture
def loggers() -> Iterator[logging.Logger]:
    """Give the loggers back as they were."""
    both = [logging.getLogger(name) for name in ("llamita.server", "uvicorn.error")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in both]
    yield both[0]
    for logger, (handlers, level, propagate) in zip(both, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_lines_are_plain_or_json_from_a_level_on(loggers: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info")
    loggers.debug("no")
    loggers.info("a %s", 1)
    assert capsys.readouterr().err.endswith(" INFO a 1\n")
    set_up("warning", as_json=True)
    loggers.info("no")
    loggers.warning('a "b"')
    fields = json.loads(capsys.readouterr().err)
    assert (fields["level"], fields["message"]) == ("WARNING", 'a "b"')


@pytest.mark.parametrize("text", ["a\r\nb", "a\x1b[31m", "\u2028", "é", "\0", "a" * 5000, "/plain"])
def test_ts19_a_client_s_text_is_one_plain_line(text: str) -> None:
    line = quoted(text)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 1300


def test_plain_text_stays_as_it_is() -> None:
    assert quoted("/v1/models?a=b") == "/v1/models?a=b"
