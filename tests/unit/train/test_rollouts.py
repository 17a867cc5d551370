"""Answers that a model in training writes."""

from pathlib import Path

from llamita.checkpoint.load import load_pretrained
from llamita.train.rollouts import RolloutWriter


def test_an_answer_depends_on_its_prompt_and_seed_alone(small_path: Path) -> None:
    loaded = load_pretrained(small_path, dtype="float32", device="cpu")
    model = loaded.model.train()
    writer = RolloutWriter(loaded.tokenizer, max_tokens=6)
    prompts = [loaded.tokenizer.encode(text) for text in ("the", "one two", "the")]
    together = writer(model, prompts, [3, 4, 5])
    alone = writer(model, prompts[:1], [3])
    assert together[0].answer == alone[0].answer
    assert together[0].answer != together[2].answer
    assert [one.prompt for one in together] == prompts
    assert all(len(one.answer) == len(one.log_probs) > 0 for one in together)
    assert model.training
