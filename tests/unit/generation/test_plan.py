"""One machine behind `LLM` and `model.generate`: what one of them can do, the other can, with the same tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

import llamita
from llamita.llm import LLM
from llamita.sampling.per_row import EachRow


@pytest.fixture(scope="module")
def llm(small_path: Path) -> LLM:
    return llamita.load(small_path, kernels="off")


BOTH: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "short beams": {"num_beams": 3, "length_penalty": -1.0},
    "guidance": {"guidance_scale": 1.7},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 2},
    "criteria": {"stopping_criteria": [lambda ids, scores: ids.shape[1] >= 9]},
}


@pytest.mark.parametrize("name", BOTH)
def test_a_text_has_the_tokens_of_generate(llm: LLM, name: str) -> None:
    options = BOTH[name]
    answer = llm.generate("abcab", max_tokens=12, **options)
    flags = {"max_new_tokens": 12, "do_sample": False, "top_k": 0, **options}
    ids = torch.tensor([answer.prompt_token_ids])
    expected = llm.model.generate(ids, eos_token_id=list(llm.tokenizer.eos_token_ids), **flags)
    assert answer.token_ids == expected[0, ids.shape[1] :].tolist()
    assert answer.text == llm.tokenizer.decode(answer.prompt_token_ids + answer.token_ids)[len("abcab") :]
    assert (answer.acceptance is not None) == (name in ("lookup", "early exit"))


def test_several_beam_texts_are_each_as_if_alone(llm: LLM) -> None:
    options: Any = {"max_tokens": 8, "num_beams": 2, "temperature": 1.0}
    together = llm.generate(["abc", "d", "x" * 40], seed=[1, 2, 3], **options)
    assert together == [llm.generate(p, seed=s, **options) for p, s in (("abc", 1), ("d", 2), ("x" * 40, 3))]


@pytest.mark.parametrize("seed", [[1], [1, 2, 3], 1.5], ids=str)
def test_wrong_seeds_of_several_beam_texts_are_refused_in_a_sentence(llm: LLM, seed: Any) -> None:
    with pytest.raises(llamita.errors.UsageError, match=r"seed (lists|is)"):
        llm.generate(["abc", "d"], max_tokens=2, num_beams=2, temperature=1.0, seed=seed)


def test_what_only_the_plain_loop_does_is_refused_elsewhere(llm: LLM) -> None:
    prefix, options = llm.new_prefix(), {"max_tokens": 3}
    first = "".join(llm.stream("abc", prefix=prefix, **options))
    with pytest.raises(llamita.errors.UsageError, match="a prefix goes with"):
        llm.stream("abc", prefix=prefix, num_beams=2, **options)
    assert "".join(llm.stream("abc", prefix=prefix, **options)) == first  # beams left nothing in its cache
    with pytest.raises(llamita.errors.UsageError, match="logprobs goes with"):
        llm.generate("abc", logprobs=1, num_beams=2, **options)
    with pytest.raises(llamita.errors.UsageError, match="watch goes with"):
        llm.stream("abc", watch=lambda logits, tokens: None, num_beams=2, **options)
    ids = torch.tensor([llm.tokenizer.encode("abc")])
    with pytest.raises(llamita.errors.UsageError, match="logprobs goes with"):
        llm.model.generate(ids, logprobs=1, tokenizer=llm.tokenizer, prompt_lookup_num_tokens=3)
    with pytest.raises(llamita.errors.UsageError, match="logprobs is about text"):
        llm.model.generate(ids, logprobs=1)


def test_a_text_that_a_criterion_ends_shows_what_was_held(llm: LLM) -> None:
    whole = llm.generate("abc", max_tokens=6)
    text, stop = whole.text, whole.text[-1] + "never"
    ends = [lambda ids, scores: ids.shape[1] >= len(whole.prompt_token_ids) + 6]
    ended = llm.generate("abc", max_tokens=9, stop=stop, stopping_criteria=ends)
    assert (ended.text, ended.finish_reason) == (text, "criterion")


def test_a_negative_prompt_leads_away(llm: LLM) -> None:
    plain = llm.generate("abc", max_tokens=8)
    assert llm.generate("abc", max_tokens=8, guidance_scale=1.0, negative_prompt="abd") == plain
    ids = torch.tensor([plain.prompt_token_ids])
    negative = torch.tensor([llm.tokenizer.encode("abd")])
    guided = llm.generate("abc", max_tokens=8, guidance_scale=3.0, negative_prompt="abd")
    flags: Any = {"guidance_scale": 3.0, "negative_prompt_ids": negative, "max_new_tokens": 8, "do_sample": False}
    assert guided.token_ids == llm.model.generate(ids, **flags)[0, ids.shape[1] :].tolist()


def test_generate_notes_logprobs(llm: LLM) -> None:
    answer = llm.generate("abc", max_tokens=6, logprobs=2)
    flags: Any = {"max_new_tokens": 6, "do_sample": False, "logprobs": 2, "return_dict_in_generate": True}
    out = llm.model.generate(torch.tensor([answer.prompt_token_ids]), tokenizer=llm.tokenizer, **flags)
    assert answer.logprobs is not None and out.logprobs == [answer.logprobs]


def test_generate_reads_on_from_a_prefix(llm: LLM) -> None:
    prefix, flags = llm.new_prefix(), {"max_new_tokens": 6, "do_sample": False}
    first, second = (torch.tensor([llm.tokenizer.encode(text)]) for text in ("user: Hello", "user: Hello again"))
    for ids in (first, second):
        assert torch.equal(llm.model.generate(ids, prefix=prefix, **flags), llm.model.generate(ids, **flags))
    assert prefix.token_ids[: second.shape[1]] == second[0].tolist()
    with pytest.raises(llamita.errors.UsageError, match="a prefix is of one text"):
        llm.model.generate(first.repeat(2, 1), prefix=prefix, **flags)


def test_a_grammar_a_row_is_compiled_once(llm: LLM) -> None:
    ids = torch.tensor([llm.tokenizer.encode("abc")] * 3)
    rows = EachRow((["Yes"], ["Yes"], None))
    out = llm.model.generate(ids, choice=rows, tokenizer=llm.tokenizer, max_new_tokens=5, do_sample=False)
    texts = [llm.tokenizer.decode(row) for row in out[:, ids.shape[1] :].tolist()]
    assert texts[0] == texts[1] == "Yes" != texts[2]
