"""Packing and loading, on any documents: every token once, nothing sees another document, resume anywhere."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.config import LlamaConfig
from llamita.data.documents import IGNORED, Document
from llamita.data.loader import Batch, Loader, take
from llamita.data.packing import MOST_WASTE, Rows, pack, parts, plan
from llamita.model.llama import LlamaForCausalLM
from llamita.train.tasks.token_loss import token_losses

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)
CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=24, intermediate_size=40, num_attention_heads=3, num_key_value_heads=1,
    num_hidden_layers=2, max_position_embeddings=64,
)  # fmt: skip


def made(lengths: list[int], *, is_splittable: bool = True) -> list[Document]:
    """Documents whose tokens are all different: token n is followed by n + 1."""
    documents, first = [], 0
    for length in lengths:
        ids = torch.arange(first, first + length + 1, dtype=torch.int32)
        documents.append(Document(ids[:-1], ids[1:], is_splittable))
        first += length + 1
    return documents


def pairs(rows: Rows) -> list[tuple[int, int]]:
    """The (input, target) pairs that are learned."""
    is_learned = rows.targets != IGNORED
    return list(zip(rows.inputs[is_learned].tolist(), rows.targets[is_learned].tolist(), strict=True))


@given(LENGTHS, st.integers(1, 16), st.integers(0, 9))
def test_every_token_is_learned_once_per_epoch(lengths: list[int], length: int, seed: int) -> None:
    documents = made(lengths)
    rows = pack(documents, length)
    wanted = sorted(pair for d in documents for pair in zip(d.inputs.tolist(), d.targets.tolist(), strict=True))
    assert sorted(pairs(rows)) == wanted
    loader = Loader(rows, seed=seed)
    for _ in range(2):
        batch = loader.next(len(rows))
        assert sorted(batch.targets[batch.targets != IGNORED].tolist()) == [target for _, target in wanted]


@given(LENGTHS, st.integers(1, 16))
def test_texts_waste_at_most_the_bound_or_less_than_a_row(lengths: list[int], length: int) -> None:
    total, rows = sum(lengths), plan(parts(made(lengths), length), length)
    padding = len(rows) * length - total
    assert padding >= 0
    assert padding <= MOST_WASTE * len(rows) * length or padding < length


@settings(max_examples=15)
@given(st.lists(st.integers(20, 99), min_size=20, max_size=40))
def test_texts_of_many_rows_waste_less_than_2_percent(lengths: list[int]) -> None:
    documents = made(lengths * 9)
    rows = plan(parts(documents, 64), 64)
    assert 1 - sum(map(len, documents)) / (64 * len(rows)) < MOST_WASTE


@settings(max_examples=10)
@given(st.integers(0, 999))
def test_chats_that_are_never_cut_waste_less_than_2_percent(seed: int) -> None:
    """2,000 chats whose lengths are spread as those of people's chats are: log-normal, most far below a row."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (torch.randn(2000, generator=generator) * 0.9 + 4.6).exp().clamp(8, 512).int().tolist()
    rows = plan(sized(lengths), 512)
    assert 1 - sum(lengths) / (512 * len(rows)) < MOST_WASTE


def sized(lengths: list[int]) -> list[Document]:
    """Documents of these lengths, which may not be cut."""
    ids = torch.zeros(512, dtype=torch.int32)
    return [Document(ids[:length], ids[:length], is_splittable=False) for length in lengths]


@given(LENGTHS)
def test_what_may_not_be_cut_stays_whole(lengths: list[int]) -> None:
    rows = plan(made(lengths, is_splittable=False), 40)
    assert sorted((piece.document, piece.start, piece.stop) for row in rows for piece in row) == [
        (number, 0, length) for number, length in enumerate(lengths)
    ]


@given(LENGTHS, st.integers(1, 16), st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(0, 7))
def test_a_loader_resumes_at_any_position(lengths: list[int], length: int, sizes: list[int], at: int) -> None:
    rows = pack(made(lengths), length)
    whole = Loader(rows, seed=1)
    for size in sizes[:at]:
        whole.next(size)
    resumed = Loader(rows, seed=1, position=whole.position)
    for size in sizes[at:]:
        assert torch.equal(whole.next(size).inputs, resumed.next(size).inputs)
    # The rows depend on the position alone, not on the sizes of the batches.
    again = Loader(rows, seed=1)
    one_by_one = torch.cat([again.next(1).inputs for _ in range(sum(sizes))])
    assert torch.equal(one_by_one, Loader(rows, seed=1).next(sum(sizes)).inputs)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
@settings(max_examples=25)
def test_packed_loss_and_gradients_equal_unpacked(lengths: list[int]) -> None:
    """To 1e-12 in fp64: of the loss, and of each weight's gradient, relative to its largest element."""
    documents = [
        Document(d.inputs % 97, torch.where(d.inputs % 5 == 4, IGNORED, d.targets % 97), is_splittable=False)
        for d in made(lengths)
    ]
    rows = pack(documents, 24)
    packed = passed([take(rows, torch.arange(len(rows)))])
    alone = passed([take(pack([d], len(d)), torch.arange(1)) for d in documents])
    for name, found in packed.items():
        expected = alone[name]
        assert (found - expected).abs().max() <= 1e-12 * max(1.0, float(expected.abs().max())), name


def passed(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """The summed loss of batches and its gradients, in fp64, by name."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).double()
    losses = [token_losses(model, batch) for batch in batches]
    for loss in losses:
        loss.backward()
    gradients = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
    return {"loss": torch.stack(losses).sum().detach(), **gradients}


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(0, 3))
def test_a_document_computes_the_same_whatever_its_neighbours_are(lengths: list[int], changed: int) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    documents = [replace(d, inputs=d.inputs % 97, targets=d.targets % 97) for d in made(lengths)]
    batch = take(pack(documents, 48), torch.tensor([0]))
    numbers = (batch.positions[0] == 0).cumsum(0) - 1
    others = numbers != changed % len(lengths)
    with torch.no_grad():
        before = model(batch.inputs, position_ids=batch.positions, use_cache=False).logits[0]
        batch.inputs[0, ~others] = (batch.inputs[0, ~others] + 1) % 97
        after = model(batch.inputs, position_ids=batch.positions, use_cache=False).logits[0]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(0, 3))
def test_no_gradient_crosses_documents(lengths: list[int], learned: int) -> None:
    model = LlamaForCausalLM(CONFIG)
    documents = [replace(d, inputs=d.inputs % 97, targets=d.targets % 97) for d in made(lengths)]
    batch = take(pack(documents, 48), torch.tensor([0]))
    numbers = (batch.positions[0] == 0).cumsum(0) - 1
    learned %= len(lengths)
    batch.targets[0, numbers != learned] = IGNORED
    seen: list[torch.Tensor] = []
    hook = model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(output))
    loss = token_losses(model, batch)
    hook.remove()
    (gradient,) = torch.autograd.grad(loss, seen)
    touched = gradient[0].abs().sum(-1) > 0
    assert touched.any()
    assert not touched[numbers != learned].any()
