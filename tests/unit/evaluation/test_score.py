"""Scores of tasks: what cria gets, and log-likelihoods that equal transformers'."""

from functools import partial
from pathlib import Path

import pytest
import torch

import llamita
from llamita.bridge import transformers as peers
from llamita.errors import UsageError
from llamita.evaluation.score import continuation_logprob, score_task, split_tokens
from llamita.evaluation.tasks import CHOICE, Case, Task, TaskScore, read_task
from llamita.llm import LLM
from llamita.tokenizer.chat import encode_chat


@pytest.fixture(scope="module")
def cria() -> LLM:
    return llamita.load(device="cpu", kernels="off", dtype="float32")


def test_cria_answers_its_suite(cria: LLM) -> None:
    assert score_task(cria, read_task("add", limit=20)).right >= 18
    assert score_task(cria, read_task("facts", limit=5)) == TaskScore("facts", "choice", 5, 5, 5)
    assert score_task(cria, read_task("story_endings", limit=6)).right >= 3


def test_an_answer_is_right_only_if_it_is_equal(cria: LLM) -> None:
    right = read_task("compare", limit=3)
    wrong = Task("wrong", right.rule, [Case(f"{case.answer}!", messages=case.messages) for case in right.cases])
    assert score_task(cria, right).right == 3
    assert score_task(cria, wrong).right == 0


def test_choices_are_ranked_by_transformers_log_likelihoods(cria: LLM, cria_path: Path) -> None:
    case = read_task("facts", limit=1).cases[0]
    peer = peers.load(cria_path, dtype=torch.float32, attn_implementation="sdpa")
    context = encode_chat(cria.tokenizer, [dict(message) for message in case.messages])
    for choice in case.choices:
        ids = cria.tokenizer.encode(choice, add_special_tokens=False)
        with torch.no_grad():
            table = peer(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1].double().log_softmax(-1)
        expected = table.gather(-1, torch.tensor(ids)[:, None]).sum().item()
        found, is_greedy = continuation_logprob(cria, context, ids)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert is_greedy == (table.argmax(-1).tolist() == ids)


def test_the_rule_looks_at_the_sum_and_per_byte_at_the_mean(cria: LLM) -> None:
    task = Task("t", "choice", [Case(1, prompt="Once upon", choices=[" a time, there was a little fox.", " zx"])])
    found = score_task(cria, task)
    sums = [continuation_logprob(cria, *split_tokens(cria.tokenizer, "Once upon", c))[0] for c in task.cases[0].choices]
    per_byte = [one / len(choice) for one, choice in zip(sums, task.cases[0].choices, strict=True)]
    assert found.right == (sums[1] > sums[0])
    assert found.right_per_byte == (per_byte[1] > per_byte[0]) == 0


def test_white_space_belongs_to_the_continuation(cria: LLM) -> None:
    tokenizer = cria.tokenizer
    assert split_tokens(tokenizer, "Once upon ", "a time") == split_tokens(tokenizer, "Once upon", " a time")
    context, continuation = split_tokens(tokenizer, "Once upon", " a time")
    assert [context[0], *tokenizer.encode("Once upon a time", add_special_tokens=False)] == context + continuation
    assert context[0] == tokenizer.bos_token_id
    assert split_tokens(tokenizer, "", "Once")[0] == [tokenizer.bos_token_id]


def test_a_continuation_that_merges_with_its_prompt_has_tokens(cria: LLM) -> None:
    encode = partial(cria.tokenizer.encode, add_special_tokens=False)
    assert len(encode("th")) == len(encode("t")) == 1
    assert split_tokens(cria.tokenizer, "t", "h") == ([cria.tokenizer.bos_token_id, *encode("t")], encode("h"))
    score = score_task(cria, Task("merged", CHOICE, (Case(1, "t", choices=("x", "h")),)))
    assert (score.right, score.cases) in ((0, 1), (1, 1))


def test_a_case_longer_than_the_context_is_refused(cria: LLM) -> None:
    with pytest.raises(UsageError, match="a case has 513 tokens, the model reads at most 512"):
        continuation_logprob(cria, [1], [2] * 513)
