"""The reward model: its rewards are those of the classifier alone, and its loss is Bradley and Terry's."""

import json
from pathlib import Path

import pytest
import torch

from llamita.data.packing import pack
from llamita.data.records import Record
from llamita.model.heads import LlamaForSequenceClassification
from llamita.tokenizer.load import load_tokenizer
from llamita.train.recipe import Recipe
from llamita.train.setup import begin
from llamita.train.tasks.reward import reward, rewards, with_reward_head
from llamita.train.tasks.task import TaskOptions
from tests.unit.train.tasks.preferences import make_model, whole

RECORDS = [
    Record({"prompt": f"{n} plus 1 is", "chosen": f" {n + 1}", "rejected": " a llama" * (n % 3 + 1)}, f"x:{n}")
    for n in range(5)
]


def test_rewards_are_those_of_the_classifier_alone(small_path: Path) -> None:
    tokenizer = load_tokenizer(small_path)
    task = reward(TaskOptions())
    model = with_reward_head(make_model(), seed=3)
    documents = task.documents(RECORDS, tokenizer)
    documents = [type(one)(one.inputs % 31, one.targets, False, starts=one.starts) for one in documents]
    batch = whole(pack(documents, 200))
    assert len(batch.inputs) < len(RECORDS)  # several pairs in a row
    found = torch.stack(rewards(model, batch), 1)
    alone = []
    for one in documents:
        texts = one.inputs.long().split([one.starts[1], len(one) - one.starts[1]])
        alone.append(torch.stack([model(text[None]).logits[0, 0] for text in texts]))
    assert torch.allclose(found.sort(0).values, torch.stack(alone).sort(0).values, rtol=1e-9)
    wanted = sum(-torch.log(1 / (1 + torch.exp(-(a - b)))) for a, b in alone)
    assert torch.allclose(task.loss(model, batch), torch.as_tensor(wanted), rtol=1e-9)  # type: ignore[arg-type]
    assert task.count(batch) == len(RECORDS)


def test_the_end_of_a_text_is_read(small_path: Path) -> None:
    tokenizer = load_tokenizer(small_path)
    (document,) = reward(TaskOptions()).documents(RECORDS[:1], tokenizer)
    ids = [tokenizer.bos_token_id, *tokenizer.encode("0 plus 1 is 1", add_special_tokens=False), tokenizer.eos_token_id]
    assert document.inputs[: document.starts[1]].tolist() == ids


@pytest.mark.filterwarnings("error")
def test_a_reward_model_is_trained_saved_and_read(small_path: Path, tmp_path: Path) -> None:
    lines = [json.dumps(dict(record.fields)) for record in RECORDS * 3]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = Recipe(
        data=(str(tmp_path / "pairs.jsonl"),), model=str(small_path), task="reward", optimizer="adamw", steps=12,
        length=96, batch_tokens=192, precision="fp32", threads=1, held_out=0.2, evaluate_every=6, lr=3e-3,
    )  # fmt: skip
    session = begin(recipe, tmp_path / "out")
    lines = list(session.steps(lambda: False))
    figures = lines[-1].figures
    assert figures is not None
    assert figures["accuracy"] == 1
    assert lines[-1].loss < 0.5 * lines[0].loss
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.num_labels == 1
    assert torch.equal(model.score.weight, session.run.model.score.weight)  # type: ignore[union-attr]
