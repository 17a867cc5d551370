"""Log-probabilities in OpenAI's shapes."""

import math

from llamita.generation.logprobs import TokenLogprob
from llamita.server.openai.logprobs import LEAST, chat_logprobs, completion_logprobs
from llamita.tokenizer.token_bytes import TokenTexts


class Texts(TokenTexts):
    """Two tokens, the first a control token."""

    def __init__(self) -> None:
        self.pieces = [None, "é".encode()]


ENTRY = TokenLogprob(1, "é", -0.5, (TokenLogprob(1, "é", -0.5), TokenLogprob(0, "<s>", -math.inf)))


def test_a_chat_s_tokens_have_bytes_and_numbers_that_json_has() -> None:
    (entry,) = chat_logprobs([ENTRY], Texts())["content"]
    assert (entry["token"], entry["bytes"], entry["logprob"]) == ("é", [0xC3, 0xA9], -0.5)
    assert [one["logprob"] for one in entry["top_logprobs"]] == [-0.5, LEAST]


def test_a_completion_s_columns_begin_with_what_nothing_comes_before() -> None:
    first = TokenLogprob(0, "<s>", math.nan)
    columns = completion_logprobs([first, ENTRY, ENTRY], Texts(), 2)
    assert columns["tokens"] == ["<s>", "é", "é"]
    assert columns["token_logprobs"] == [None, -0.5, -0.5]
    assert columns["top_logprobs"][:2] == [None, {"é": -0.5, "<s>": LEAST}]
    assert columns["text_offset"] == [2, 2, 3]


def test_a_completion_s_written_token_is_among_the_likely_ones_and_the_first_of_a_text_counts() -> None:
    drawn = TokenLogprob(0, "x", -3.0, (TokenLogprob(1, "\ufffd", -0.5), TokenLogprob(1, "\ufffd", -1.0)))
    plain = TokenLogprob(0, "x", -3.0)
    columns = completion_logprobs([drawn, plain], Texts())["top_logprobs"]
    assert [list(one.items()) for one in columns] == [[("x", -3.0), ("\ufffd", -0.5)], [("x", -3.0)]]
