"""GRPO: its formula, its groups, and log-probabilities that are the sampler's own."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llamita.data.documents import IGNORED
from llamita.errors import UsageError
from llamita.train import state
from llamita.train.check_loss import check_loss
from llamita.train.draft import MANIFEST
from llamita.train.recipe import Recipe
from llamita.train.rollouts import Rollout
from llamita.train.session import INSIDE
from llamita.train.setup import begin, resume, resumed_recipe
from llamita.train.tasks.grpo import CLIP, DIFFERENCE, HELD_OUT, advantages, answer_batch, token_losses


@pytest.fixture
def recipe(small_path: Path, tmp_path: Path) -> Recipe:
    lines = [json.dumps({"prompt": f"the llama {n}", "pattern": "[a-m]"}) for n in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Recipe(
        data=(str(tmp_path / "prompts.jsonl"),), model=str(small_path), method="lora", task="grpo", reward="regex",
        optimizer="adamw", lr=1e-2, steps=3, length=32, batch_tokens=64, group=3, max_tokens=5, micro_rows=2,
        threads=1, held_out=0.2, evaluate_every=3, save_every=2,
    )  # fmt: skip


def test_the_loss_is_the_paper_s() -> None:
    """Equation 3 of arXiv:2402.03300 of one token, with Schulman's estimate of the divergence."""
    for log_prob, old, advantage, reference in (
        (-1.0, -1.5, 2.0, -1.2),
        (-2.0, -1.0, -0.5, -3.0),
        (-1.0, -1.1, 1.0, -1.0),
    ):
        ratio = math.exp(log_prob) / math.exp(old)
        clipped = min(max(ratio, 1 - CLIP), 1 + CLIP)
        share = math.exp(reference) / math.exp(log_prob)
        wanted = -(min(ratio * advantage, clipped * advantage) - 0.3 * (share - math.log(share) - 1))
        given = (torch.tensor([one], dtype=torch.float64) for one in (log_prob, old, advantage, reference))
        assert token_losses(*given, kl=0.3).item() == pytest.approx(wanted, rel=1e-12)


def test_advantages_are_of_each_group() -> None:
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 4.0]]))
    assert found[0].tolist() == [1.0, -1.0, -1.0, 1.0]
    assert found[1].tolist() == [0.0] * 4
    assert found[2].tolist() == pytest.approx([-1 / math.sqrt(3)] * 3 + [math.sqrt(3)])


def test_answers_keep_their_advantages_when_packed() -> None:
    written = [Rollout([1, 2, 3], [4, 5], [-0.5, -0.25], "a"), Rollout([6], [], [], ""), Rollout([7], [8], [-2.0], "b")]
    batch = answer_batch(written, torch.tensor([1.5, 9.0, -3.0]), 8)
    assert batch.labels is not None
    assert batch.old is not None
    learned = batch.targets != IGNORED
    rows = zip(
        batch.targets[learned].tolist(), batch.labels[learned].tolist(), batch.old[learned].tolist(), strict=True
    )
    assert sorted(rows) == [(4, 1.5, -0.5), (5, 1.5, -0.25), (8, -3.0, -2.0)]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_exact_rollouts_have_the_trainer_s_log_probabilities(recipe: Recipe, tmp_path: Path, method: str) -> None:
    recipe = replace(recipe, method=method, kl=0.1 if method == "lora" else 0.0)
    lines = list(begin(recipe, tmp_path / "out").steps(lambda: False))
    figures = [line.figures or {} for line in lines]
    assert [one[DIFFERENCE] for one in figures] == [0.0, 0.0, 0.0]
    assert all(0 <= one["reward"] <= 1 for one in figures)
    assert 0 <= figures[-1][HELD_OUT] <= 1
    assert any(line.grad_norm > 0 for line in lines)  # so the later steps compare trained weights


def test_the_loss_of_sampled_answers_can_be_checked(recipe: Recipe, tmp_path: Path) -> None:
    session = begin(replace(recipe, method="full", group=6), tmp_path / "out")
    found = check_loss(session.run, session.recipe)
    assert found.gradient_difference < 1e-6 < found.largest_gradient


def test_a_resumed_run_samples_the_same_answers(recipe: Recipe, tmp_path: Path) -> None:
    list(begin(recipe, tmp_path / "whole").steps(lambda: False))
    first = begin(recipe, tmp_path / "parts")
    list(first.steps(lambda: first.run.step >= 1))
    list(resume(resumed_recipe(tmp_path / "parts", {}), tmp_path / "parts").steps(lambda: False))
    manifests = [(state.newest(tmp_path / name / INSIDE) / MANIFEST).read_text() for name in ("whole", "parts")]
    assert manifests[0] == manifests[1]


def test_the_reward_rises(recipe: Recipe, tmp_path: Path) -> None:
    """Random weights write one of the wanted letters in a third of their answers, and in ten steps learn to do it."""
    recipe = replace(
        recipe, method="full", rollouts="plain", steps=10, length=20, batch_tokens=80, group=6, max_tokens=4,
        micro_rows=4, held_out=0.0, seed=1,
    )  # fmt: skip
    rewards = [(line.figures or {})["reward"] for line in begin(recipe, tmp_path / "out").steps(lambda: False)]
    assert sum(rewards[:3]) / 3 < 0.5
    assert sum(rewards[-3:]) / 3 > 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "exact"}, "jsonl:1 has no answer, which the reward exact needs"),
        ({"reward": "best"}, "reward is 'best': use one of exact, regex, json, or module:function"),
        ({"max_tokens": 40}, "an answer may have 40 tokens and a row 32: raise --length"),
        ({"max_tokens": 30}, "and its answer up to 30, a row 32: pass --length"),
        ({"method": "full", "kl": 0.1}, "only an adapter keeps its base: take --method lora"),
        ({"precision": "bf16"}, "exact rollouts are sampled in fp32"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    recipe: Recipe, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        begin(replace(recipe, **changes), tmp_path / "out")  # type: ignore[arg-type]
