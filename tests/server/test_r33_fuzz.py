"""R33: fields of the OpenAPI description with values of any kind: never a 5xx, always an error object or an answer."""

from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.bad_input import GOOD
from tests.server.serving import Running

TEXTS = st.text(max_size=8) | st.sampled_from(["user", "text", "function", "auto", "json_object", "type", "a" * 300])
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-2, 12)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def fields_of(description: dict[str, Any], path: str) -> list[str]:
    """The fields of a path's body."""
    content = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    return sorted(description["components"]["schemas"][name]["properties"])


def test_every_post_is_fuzzed(server: Running) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {path for path, methods in paths.items() if "post" in methods} == GOOD.keys()


def test_errors_and_kinds_of_answers_are_as_described(server: Running) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method, what in methods.items():
            answer = server.post(path, {}) if method == "post" else server.get(path.replace("{model:path}", "none"))
            found = what["responses"]["200" if answer.is_success else "4XX"]["content"]
            kind = answer.headers["content-type"].partition(";")[0]
            assert kind in found, path
            if answer.is_client_error:
                jsonschema.validate(answer.json(), found[kind]["schema"])
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"):
        assert "text/event-stream" in paths[path]["post"]["responses"]["200"]["content"]


@pytest.mark.parametrize("path", GOOD)
def test_r33_ts9_no_value_of_a_field_is_a_5xx(server: Running, path: str) -> None:
    names = fields_of(server.get("/openapi.json").json(), path)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
    def check(fields: dict[str, Any]) -> None:
        try:
            answer = server.post(path, {"model": "cria", **GOOD[path], **fields})
        except UnicodeEncodeError:  # half a surrogate, which this client cannot send
            return
        assert answer.status_code < 500 and "server_error" not in answer.text, answer.text
        assert answer.status_code == 200 or answer.json()["error"]["message"]

    check()
    assert server.get("/health").status_code == 200
