"""/tokenize, /detokenize and /apply-template: what the model reads, without an answer."""

from typing import Any

from llamita.llm import LLM
from tests.server.serving import Running

TALK: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|eot_id|> there"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def test_a_text_comes_back(server: Running, cria: LLM) -> None:
    for name in ("prompt", "content"):
        found = server.post("/tokenize", {name: "Once upon a time é😀"}).json()
        assert found["tokens"] == cria.tokenizer.encode("Once upon a time é😀")
        assert found["count"] == len(found["tokens"])
    plain = server.post("/tokenize", {"prompt": "Once", "add_special_tokens": False}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": plain}).json()["content"] == "Once"
    pieces = server.post("/tokenize", {"prompt": "Once", "with_pieces": True}).json()["tokens"]
    assert "".join(one["piece"] for one in pieces).endswith("Once")
    spelled = server.post("/tokenize", {"prompt": "Once é", "return_token_strs": True}).json()
    assert spelled["token_strs"] == [cria.tokenizer.id_to_token(token_id) for token_id in spelled["tokens"]]


def test_a_long_text_comes_back_whole(server: Running) -> None:
    text = "The cat sat on the mat. 😀 " * 4000
    found = server.post("/tokenize", {"prompt": text, "with_pieces": True, "add_special_tokens": False}).json()
    assert "".join(one["piece"] for one in found["tokens"]).startswith("The cat sat on the mat. ")
    plain = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    assert plain["tokens"] == [one["id"] for one in found["tokens"]]
    assert len(plain["tokens"]) == plain["count"] > 20_000
    assert server.post("/detokenize", {"tokens": plain["tokens"]}).json()["prompt"] == text


def test_a_conversation_is_what_a_chat_reads(server: Running) -> None:
    talk: dict[str, Any] = {"messages": TALK, "tools": [TOOL]}
    ids = server.post("/tokenize", talk).json()
    answer = server.post("/v1/chat/completions", {"model": "cria", "max_tokens": 1, **talk})
    assert ids["count"] == answer.json()["usage"]["prompt_tokens"]
    text = server.post("/apply-template", talk).json()["prompt"]
    assert server.post("/detokenize", {"tokens": ids["tokens"]}).json()["content"] == text
    assert "Be brief." in text


def test_a_conversation_may_go_on_from_its_last_message(server: Running) -> None:
    talk: dict[str, Any] = {"messages": [*TALK, {"role": "assistant", "content": "Well,"}]}
    assert server.post("/apply-template", {**talk, "continue_final_message": True}).json()["prompt"].endswith("Well,")
    assert not server.post("/apply-template", talk).json()["prompt"].endswith("Well,")


def test_a_refusal_of_an_earlier_answer_is_what_it_said(server: Running) -> None:
    told: list[Any] = [
        {"role": "assistant", "content": "No."},
        {"role": "assistant", "content": None, "refusal": "No."},
    ]
    found = [server.post("/apply-template", {"messages": [*TALK, one, TALK[1]]}).json() for one in told]
    assert found[0] == found[1] and "No." in found[1]["prompt"]
