"""Compiled equals plain, bit for bit where the backend only replays; no broken graphs, none anew for another length."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from llamita import LlamaConfig, LlamaForCausalLM, StaticCache
from llamita.cache import Cache, DynamicCache, OffloadedCache, QuantizedCache, SinkCache, SlidingWindowCache
from llamita.cache.growing import GrowingCache
from llamita.plans.compile import compile_model

PASSES = (9, 1, 1, 1, 5, 1, 4, 1)  # tokens of each call on one cache
MakeCache = Callable[[LlamaConfig, int], Cache]
CACHES: dict[str, MakeCache] = {
    "dynamic": lambda config, rows: DynamicCache(),
    "static": lambda config, rows: StaticCache(config, batch=rows, capacity=40),
    "growing": lambda config, rows: GrowingCache(),
    "sliding": lambda config, rows: SlidingWindowCache(16),
    "sink": lambda config, rows: SinkCache(12, sinks=2),
    "offloaded": lambda config, rows: OffloadedCache(),
    "quantized": lambda config, rows: QuantizedCache(8, group=4, residual=8),
}


class Pair:
    """A compiled model, its plain twin, and how many graphs have been compiled.

    One of all layers is traced through each of them: where two tell no more than one, there is one.
    """

    def __init__(self, config: LlamaConfig, plan: str, backend: str = "eager", layers: int = 2, **changes: str) -> None:
        self.plain = LlamaForCausalLM(
            config.replace(max_position_embeddings=256, num_hidden_layers=layers, **changes)
        ).eval()
        self.counter = CompileCounterWithBackend(backend)
        self.compiled = compile_model(copy.deepcopy(self.plain), plan, backend=self.counter)

    @property
    def graphs(self) -> int:
        return self.counter.frame_count

    @torch.no_grad()
    def read(
        self, ids: Tensor, caches: tuple[Cache, Cache] | None = None, mask: Tensor | None = None, close: float = 0.0
    ) -> None:
        """Let both read, and compare all they say."""
        outputs = [
            model(ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None)
            for model, cache in zip((self.compiled, self.plain), caches or (None, None), strict=True)
        ]
        torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=close)

    def read_on(self, make: MakeCache, rows: int, *, left: int = 0) -> None:
        """Let both read a text in passes, each on a cache of its own."""
        caches = make(self.plain.config, rows), make(self.plain.config, rows)
        # A graph cannot read that a static cache is empty, and masks its slots: sdpa rounds otherwise with a mask.
        close = 1e-5 if isinstance(caches[0], StaticCache) and not left else 0.0
        seen = 0
        for count in PASSES:
            seen += count
            mask = None
            if left:
                mask = torch.ones(rows, seen, dtype=torch.long)
                mask[0, :left] = 0
            self.read(tokens(rows, count), caches, mask, close)
        assert caches[0].length == caches[1].length == sum(PASSES)
        for ours, theirs in zip(*caches, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=close)


def tokens(rows: int, count: int) -> Tensor:
    return torch.randint(0, 97, (rows, count))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    # With symbols for sizes torch uses three in ten of the results it keeps; to keep them takes a fifth of the time.
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield
    assert not counters["graph_break"]
    torch.compiler.reset()


plans = pytest.mark.parametrize("plan", ["regional", "full"])
LAYERS = {"regional": 2, "full": 1}


@plans
@pytest.mark.parametrize("rows", [1, 3])
def test_whole_sequences_of_any_length_share_their_graphs(tiny_config: LlamaConfig, plan: str, rows: int) -> None:
    pair = Pair(tiny_config, plan)
    pair.read(tokens(rows, 7))
    assert pair.graphs == {"regional": 2, "full": 1}[plan]  # however many layers
    for length in (2, 8, 33, 100):
        pair.read(tokens(rows, length))
    if rows > 1:
        pair.read(tokens(rows + 2, 11))
    assert pair.graphs == {"regional": 2, "full": 1}[plan]


@pytest.mark.parametrize(("kind", "rows", "layers"), [("dynamic", 1, 1), ("static", 2, 2), ("growing", 2, 1)])
def test_decoding_compiles_nothing_anew(tiny_config: LlamaConfig, kind: str, rows: int, layers: int) -> None:
    """Several rows of a dynamic cache are among the padded ones below."""
    pair = Pair(tiny_config, "full", layers=layers)
    pair.read_on(CACHES[kind], rows)
    kinds = pair.graphs
    assert kinds <= 3  # several tokens, several behind a cache, one
    for _ in range(2):
        pair.read_on(CACHES[kind], rows)
    assert pair.graphs == kinds


@pytest.mark.parametrize(("kind", "rows"), [("dynamic", 1), *((kind, 2) for kind in CACHES)])
def test_regional_serves_every_cache_with_the_same_graphs(tiny_config: LlamaConfig, kind: str, rows: int) -> None:
    pair = Pair(tiny_config, "regional")
    for _ in range(3):
        pair.read_on(CACHES[kind], rows)
        assert pair.graphs == 4  # several tokens and one, of a layer and of the norm and head behind it


def test_full_runs_plainly_over_a_quantized_cache_and_says_so_once(tiny_config: LlamaConfig) -> None:
    pair = Pair(tiny_config, "full", layers=1)
    with pytest.warns(UserWarning, match='runs plainly: use compile="regional"$') as said:
        pair.read_on(CACHES["quantized"], 2)
        pair.read_on(CACHES["quantized"], 1)
    assert len(said) == 1
    assert pair.graphs == 0
    pair.read(tokens(2, 7))
    assert pair.graphs > 0


@pytest.mark.parametrize(("plan", "kind"), [("regional", "dynamic"), ("full", "dynamic"), ("full", "static")])
def test_padded_rows(tiny_config: LlamaConfig, plan: str, kind: str) -> None:
    pair = Pair(tiny_config, plan, layers=LAYERS[plan])
    pair.read_on(CACHES[kind], 3, left=4)
    kinds = pair.graphs
    assert kinds <= (4 if plan == "regional" else 3)
    pair.read_on(CACHES[kind], 3, left=2)
    assert pair.graphs == kinds


@plans
def test_the_eager_backend_of_attention(tiny_config: LlamaConfig, plan: str) -> None:
    pair = Pair(tiny_config, plan, layers=LAYERS[plan], attn_implementation="eager")
    pair.read(tokens(2, 7))
    pair.read(tokens(3, 8))


# torch asks tensors for their .grad while it compiles, and hides its own warning by means that "error" comes before.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@plans
def test_gradients_are_those_of_the_plain_model(tiny_config: LlamaConfig, plan: str) -> None:
    pair = Pair(tiny_config, plan, layers=LAYERS[plan], backend="aot_eager")
    graphs = []
    for length in (7, 12, 9):
        ids = tokens(2, length)
        losses = [model(ids, labels=ids, use_cache=False).loss for model in (pair.compiled, pair.plain)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
        graphs.append(pair.graphs)
    for ours, theirs in zip(pair.compiled.parameters(), pair.plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    assert graphs[0] == graphs[-1]


@plans
def test_generate_writes_what_the_plain_model_writes(tiny_config: LlamaConfig, plan: str) -> None:
    pair = Pair(tiny_config, plan, layers=LAYERS[plan])
    ids, mask = tokens(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": True, "seed": [1, 2], "eos_token_id": None}
    assert torch.equal(pair.compiled.generate(ids, **options), pair.plain.generate(ids, **options))
    kinds = pair.graphs
    pair.compiled.generate(tokens(2, 9), max_new_tokens=15, do_sample=False, attention_mask=torch.ones(2, 9).long())
    pair.compiled.generate(ids, **options)
    assert pair.graphs <= kinds + 2  # at most those of a batch without padding
