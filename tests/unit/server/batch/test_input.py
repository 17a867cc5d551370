"""The input of a batch: every line is checked, and what is wrong is said with its number."""

import json
from typing import Any

import pytest

from llamita.errors import BrokenFileError
from llamita.server.batch.input import ID_PREFIX, BadLine, BatchRequest, read_input

CHAT = "/v1/chat/completions"


def line(custom_id: Any = "a", *, method: Any = "POST", url: Any = CHAT, body: Any = None) -> bytes:
    body = {"model": "m", "messages": []} if body is None else body
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body}).encode() + b"\n"


def test_requests() -> None:
    first, second = read_input([b"\xef\xbb\xbf" + line("a"), b"\n", b"  \r\n", line("ü", body={"x": 1})], "in")
    assert isinstance(first, BatchRequest)
    assert isinstance(second, BatchRequest)
    assert (first.number, first.custom_id, first.url, first.model) == (1, "a", CHAT, "m")
    assert (second.number, second.custom_id, json.loads(second.body), second.model) == (4, "ü", {"x": 1}, None)


def test_an_id_is_made_of_what_is_asked() -> None:
    def id_of(given: bytes) -> str:
        return read_input([given], "in")[0].id

    ids = {id_of(given) for given in (line("a"), line("b"), line("a", url="/v1/responses"), line("a", body={"x": 1}))}
    assert len(ids) == 4
    assert all(one.startswith(ID_PREFIX) for one in ids)
    spaced = json.dumps(json.loads(line("a")), indent=1).replace("\n", "").encode()
    assert id_of(spaced) == id_of(line("a"))


BAD: dict[bytes, str] = {
    b"{": "is no JSON",
    b"[" * 100_000: "nested too deeply",
    b'"\\ud800"': "surrogate",
    b"\xff\xfe": "is not UTF-8",
    b'{"custom_id": "b", "custom_id": "c"}': "a name occurs twice in one object",
    b"[1]": "is no JSON object",
    b"{}": "custom_id None",
    line(""): "custom_id ''",
    line(7): "custom_id 7",
    line("x" * 513): "1 to 512",
    line(method="GET"): "method 'GET'",
    line(url="/v1/models"): "url '/v1/models'",
    line(url=[CHAT]): "url [",
    line(body=[]): "has no body",
    line(body={"stream": True}): "leave out stream",
    line("first"): "custom_id 'first' of line 1",
}


@pytest.mark.parametrize(("given", "message"), BAD.items(), ids=BAD.values())
def test_a_bad_line(given: bytes, message: str) -> None:
    with pytest.raises(BrokenFileError, match=r"in\.jsonl: line 2 ") as error:
        read_input([line("first"), given], "in.jsonl")
    assert message in str(error.value)
    assert len(str(error.value)) < 400
    _, bad = read_input([line("first"), given], "in.jsonl", keeps_bad=True)
    assert isinstance(bad, BadLine)
    assert message in bad.reason
    assert bad.number == 2


def test_bad_lines_are_told_apart_and_keep_their_name_where_it_is_their_own() -> None:
    lines = [line("a"), b"{", b"{", line("a"), line("b", url="/"), line("b")]
    found = read_input(lines, "in", keeps_bad=True)
    assert len({entry.id for entry in found}) == 6
    assert [entry.custom_id for entry in found] == ["a", None, None, None, "b", None]
