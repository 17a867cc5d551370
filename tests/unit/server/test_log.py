"""Lines of the log."""

import pytest

from llamita.server.log import quoted


@pytest.mark.parametrize("text", ["a\r\nb", "a\x1b[31m", "\u2028", "é", "\0", "a" * 5000, "/plain"])
def test_ts19_a_client_s_text_is_one_plain_line(text: str) -> None:
    line = quoted(text)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 1300


def test_plain_text_stays_as_it_is() -> None:
    assert quoted("/v1/models?a=b") == "/v1/models?a=b"
