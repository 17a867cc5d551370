"""Lines of the log."""

import json
import logging

import pytest

from llamita.server.log import quoted, set_up


def test_lines_are_plain_or_json_from_a_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("llamita.server")
    set_up("info")
    logger.debug("no")
    logger.info("a %s", 1)
    assert capsys.readouterr().err.endswith(" INFO a 1\n")
    set_up("warning", as_json=True)
    logger.info("no")
    logger.warning('a "b"')
    fields = json.loads(capsys.readouterr().err)
    assert (fields["level"], fields["message"]) == ("WARNING", 'a "b"')


def test_what_a_message_names_are_fields_of_a_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", as_json=True)
    logging.getLogger("llamita.server").info("%(path)s %(status)d", {"path": "/a", "status": 200})
    fields = json.loads(capsys.readouterr().err)
    assert (fields["message"], fields["path"], fields["status"]) == ("/a 200", "/a", 200)


def test_ts19_errors_of_asyncio_are_lines_too_and_its_warnings_none(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", as_json=True)
    logger = logging.getLogger("asyncio")
    logger.warning("socket.send() raised exception.")
    logger.error("a task failed")
    assert json.loads(capsys.readouterr().err)["message"] == "a task failed"


@pytest.mark.parametrize("text", ["a\r\nb", "a\x1b[31m", "\u2028", "é", "\0", "a" * 5000, "/plain"])
def test_ts19_a_client_s_text_is_one_plain_line(text: str) -> None:
    line = quoted(text)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 1300


def test_plain_text_stays_as_it_is() -> None:
    assert quoted("/v1/models?a=b") == "/v1/models?a=b"
