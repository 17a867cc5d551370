"""What is asked before and after fine-tuning."""

from llamita.cli.finetune_score import MOST_CASES, Score, askable, count_right
from llamita.data.cases import Case
from llamita.llm import LLM


def test_right_is_what_the_model_writes_greedily(llm: LLM) -> None:
    prompts = ["the llama", "one two"]
    written = [llm.generate(prompt, max_tokens=4, temperature=0) for prompt in prompts]
    cases = [
        Case(
            [*llm.tokenizer.encode(prompt), *answer.token_ids], [False] * len(llm.tokenizer.encode(prompt)) + [True] * 4
        )
        for prompt, answer in zip(prompts, written, strict=True)
    ]
    assert count_right(llm, cases, llm.tokenizer) == 2
    wrong = [Case([*one.ids[:-1], one.ids[-1] + 1], one.is_learned) for one in cases]
    assert count_right(llm, wrong, llm.tokenizer) == 0


def test_only_short_single_answers_are_asked() -> None:
    good = Case([1, 2, 3], [False, False, True])
    chat = Case([1, 2, 3, 4], [False, True, False, True])
    text = Case([1, 2, 3], [False, True, True])
    assert askable([good, chat, text]) == [good]
    assert len(askable([good] * (MOST_CASES + 1))) == MOST_CASES


def test_a_score_is_a_line() -> None:
    assert str(Score(3, 5, {"held-out loss": 0.25})) == "3 of 5 held-out answers right, held-out loss 0.250"
    assert str(Score(0, 0, {"accuracy": 1.0})) == "accuracy 1.000"
