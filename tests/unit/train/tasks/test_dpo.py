"""Preference training: packed pairs give the formula's loss, however they are cut, and do not touch each other."""

from dataclasses import replace

import pytest
import torch

from llamita.data.documents import IGNORED, Document
from llamita.data.loader import Loader, take
from llamita.data.packing import Rows, pack
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.train.recipe import Recipe
from llamita.train.reference import with_reference
from llamita.train.run import Run
from llamita.train.tasks.dpo import LOSSES, dpo, read_pairs, with_baseline
from llamita.train.tasks.preference_losses import PAIR_LOSSES, Pairs, kto
from llamita.train.tasks.task import Compute, TaskOptions
from tests.unit.train.tasks.preferences import LENGTH, make_model, make_pairs, make_rows, summed, whole

RECIPE = Recipe(precision="fp32", micro_rows=2)


def runs(model: LlamaForCausalLM) -> Compute:
    """What runs a pass of the model, as a run does."""
    return lambda compute, batch: compute(model, batch)


def referred(rows: Rows, reference: LlamaForCausalLM) -> Rows:
    """The rows with what a run whose model is the reference gives them."""
    return with_reference(rows, Run(reference, [], Loader(rows, seed=0), 1), RECIPE)


def counts(pair: Document) -> list[int]:
    """How many tokens of each text of a pair are learned."""
    parts = pair.targets.split([pair.starts[1], len(pair) - pair.starts[1]])
    return [int((part != IGNORED).sum()) for part in parts]


@pytest.mark.parametrize("loss", PAIR_LOSSES)
@pytest.mark.parametrize("is_free", [False, True], ids=["reference", "free"])
def test_packed_pairs_give_the_loss_of_pairs_alone(loss: str, is_free: bool) -> None:
    model, reference, options = make_model(1), make_model(2), TaskOptions(loss=loss, is_reference_free=is_free)
    task, documents = dpo(options), make_pairs()
    rows = referred(make_rows(), reference) if task.needs_reference else make_rows()
    alone = [[*summed(model, one), *summed(reference, one)] for one in documents]
    ours, theirs = (torch.stack([torch.stack(pair[at : at + 2]) for pair in alone]) for at in (0, 2))
    theirs = theirs if task.needs_reference else torch.zeros_like(theirs)
    tokens = torch.tensor([counts(one) for one in documents])
    wanted = PAIR_LOSSES[loss].of(Pairs(*ours.T, *theirs.T, *tokens.T), options).sum()
    batch = whole(rows)
    assert task.count(batch) == len(documents)
    assert torch.allclose(task.loss(model, batch), wanted, rtol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_does_not_depend_on_how_it_is_cut(loss: str) -> None:
    model, task = make_model(1), dpo(TaskOptions(loss=loss, beta=0.5))
    batch = whole(referred(make_rows(rated=loss == "kto"), make_model(2)))
    gradients = []
    for micro_rows in (len(batch.inputs), 2, 1):
        model.zero_grad()
        prepared = batch if task.prepare is None else task.prepare(runs(model), batch, micro_rows)
        for part in prepared.split(micro_rows):
            (task.loss(model, part) / task.count(batch)).backward()
        gradients.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], rtol=0, atol=1e-12)
    assert torch.allclose(gradients[0], gradients[2], rtol=0, atol=1e-12)


def test_no_gradient_crosses_pairs() -> None:
    model, documents = make_model(), make_pairs(4)
    batch = take(pack(documents[:3], LENGTH * 2), torch.tensor([0]))
    seen: list[torch.Tensor] = []
    hook = model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = read_pairs(model, batch)
    hook.remove()
    numbers = ((batch.positions[0] == 0).cumsum(0) - 1) // 2
    for pair in range(3):
        (gradient,) = torch.autograd.grad(found.margin[pair], seen, retain_graph=True)
        touched = gradient[0].abs().sum(-1) > 0
        assert touched.any()
        assert not touched[numbers != pair].any()


def test_kto_is_the_paper_s_over_the_whole_step() -> None:
    model, reference, options = make_model(1), make_model(2), TaskOptions(loss="kto", beta=0.5)
    task, documents = dpo(options), make_pairs(rated=True)
    batch = whole(referred(make_rows(rated=True), reference))
    ratios = torch.stack(
        [torch.stack(summed(model, one)) - torch.stack(summed(reference, one)) for one in documents]
    )  # (answers, own and another prompt's)
    baseline = ratios[:, 1].mean().clamp(min=0)
    good = torch.tensor([one.label > 0 for one in documents])
    wanted = kto(ratios[:, 0], good, baseline, options).sum()
    prepared = with_baseline(runs(model), batch, 1)
    assert torch.allclose(task.loss(model, prepared), wanted, rtol=1e-9)
    assert task.count(batch) == len(documents)
    figures = task.figures(model, prepared)
    assert figures["accuracy"] == ((ratios[:, 0] > 0) == good).sum()


def test_the_model_at_the_start_has_no_margin() -> None:
    model = make_model()
    rows = referred(make_rows(), model)
    found = read_pairs(model, whole(rows))
    assert rows.reference is not None
    assert found.margin.abs().max() <= 1e-14  # sums of other shapes may be of another order
    assert replace(rows, reference=None).fingerprint() == rows.fingerprint()


def test_kto_needs_a_reference() -> None:
    with pytest.raises(UsageError, match="kto compares with a reference model"):
        dpo(TaskOptions(loss="kto", is_reference_free=True))
