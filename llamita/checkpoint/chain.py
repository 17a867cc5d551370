"""The chain from a base model to a GGUF file: is every edge the same model, or how far does its text move?

A chain is a list of models: folders, folders of adapters (on the model before them), GGUF files. An edge is two
neighbours. Where the second is made from the first by arithmetic alone (merging, quantizing, converting), the
arithmetic is done again here, and the file must hold the result bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from llamita.adapters.files import CONFIG, load_adapter
from llamita.adapters.lora import merge_and_unload
from llamita.checkpoint.gguf import load_gguf, open_model
from llamita.checkpoint.gguf_names import is_gguf
from llamita.checkpoint.load import find, load_pretrained, with_tokens
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.files.checkpoint import open_checkpoint
from llamita.files.gguf_types import PLAIN
from llamita.kernels.blocks import FORMATS
from llamita.model.llama import LlamaForCausalLM
from llamita.model.module_outputs import first_difference, outputs_of
from llamita.model.pretrained import chosen_dtype
from llamita.tokenizer.chat import encode_chat
from llamita.tokenizer.protocol import Tokenizer

FOLDER, ADAPTER, GGUF = "folder", "adapter", "gguf"
DIALOGUE = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]  # what templates write
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Stage:
    """One model of a chain, in fp32 with plain weights. base: the name of the model that an adapter is on."""

    name: str
    kind: str
    model: LlamaForCausalLM
    tokenizer: Tokenizer
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What an edge does to a text.

    kl: the mean Kullback-Leibler divergence of the next token's distribution, in nats per token. agreement: the share
    of tokens for which both models think the same next token most probable. first: the first module whose output
    differs, by at most `first_difference`; None if all outputs are equal bit for bit.
    unequal: what must be equal and is not: weights, modules, tokens. made: what was computed again here, or "".
    """

    action: str
    source: str
    target: str
    kl: float
    agreement: float
    first: str | None
    first_difference: float
    made: str = ""
    unequal: Sequence[str] = ()


def verify_chain(names: Sequence[str], text: str, *, tokens: int, offline: bool = False) -> Iterator[Edge]:
    """Compare neighbours on the first tokens of a text, in fp32 on the CPU; two models are in memory at a time.

    Raises UsageError for a chain that is too short or begins with an adapter, and what loading raises.
    """
    if len(names) < 2:
        raise UsageError("a chain has at least two models: give BASE ADAPTER MERGED GGUF, or some of them in order")
    stages = _stages(names, offline=offline)
    for before, after in pairwise(stages):
        yield _edge(before, after, text, tokens, offline=offline)


def _stages(names: Sequence[str], *, offline: bool) -> Iterator[Stage]:
    """The models of a chain, each loaded when it is asked for."""
    before: Stage | None = None
    for name in names:
        before = _stage(name, before, offline=offline)
        yield before


def _stage(name: str, before: Stage | None, *, offline: bool) -> Stage:
    path = find(name, offline=offline)
    if is_gguf(path):
        model, tokenizer = load_gguf(path, dtype="float32", device="cpu")
        return Stage(name, GGUF, model, with_tokens(tokenizer, path))
    if not (path / CONFIG).is_file():
        loaded = load_pretrained(name, dtype="float32", device="cpu", offline=offline)
        return Stage(name, FOLDER, loaded.model, loaded.tokenizer)
    if before is None or before.kind == ADAPTER:
        raise UsageError(f"{name} is an adapter: put the model that it is on before it")
    loaded = load_pretrained(before.name, dtype="float32", device="cpu", offline=offline)
    load_adapter(loaded.model, path)
    return Stage(name, ADAPTER, loaded.model.eval(), loaded.tokenizer, base=before.name)


@torch.no_grad()
def _edge(before: Stage, after: Stage, text: str, tokens: int, *, offline: bool) -> Edge:
    action, made, expect = EDGES.get((before.kind, after.kind), ("", "", None))
    if not action:
        raise UsageError(f"{before.name} is an adapter: put the folder of the merged model between it and {after.name}")
    ids = before.tokenizer.encode(text)[: min(tokens, before.model.config.max_position_embeddings)]
    found, outputs = _run(after.model, ids)
    source, source_outputs = _run(before.model, ids)
    first, gap = first_difference(source_outputs, outputs)
    kl, agreement = _divergence(source, found)
    unequal = _unequal_tokens(before.tokenizer, after.tokenizer, text)
    if expect is not None:
        unequal += _unequal_weights(expect(before, after, offline), _weights(after.model))
        unequal = unequal or _unequal_modules(before, after, ids, outputs)
    return Edge(
        action=action, source=before.name, target=after.name, kl=kl, agreement=agreement,
        first=first, first_difference=gap, made=made, unequal=unequal,
    )  # fmt: skip


def _run(model: LlamaForCausalLM, ids: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The logits (T, V) after ids, and the outputs of all modules."""
    with outputs_of(model) as outputs:
        logits = model(torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0]
    return logits, outputs


def _divergence(logits: Tensor, others: Tensor) -> tuple[float, float]:
    """KL(p || q) per token of two models' logits (T, V), and how often they agree on the most probable token."""
    p, q = (one[:, : min(logits.shape[1], others.shape[1])].double().log_softmax(-1) for one in (logits, others))
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    return max(kl, 0.0), (p.argmax(-1) == q.argmax(-1)).double().mean().item()


def _unequal_tokens(tokenizer: Tokenizer, other: Tokenizer, text: str) -> list[str]:
    """What two tokenizers do differently: the ids of a text, of a dialogue, or where an answer ends."""
    unequal = [] if tokenizer.encode(text) == other.encode(text) else ["the token ids of the text"]
    if tokenizer.chat_template is not None and _dialogue(tokenizer) != _dialogue(other):
        unequal.append("the token ids of a chat")
    if set(tokenizer.eos_token_ids) != set(other.eos_token_ids):
        unequal.append("the tokens that end an answer")
    return unequal


def _dialogue(tokenizer: Tokenizer) -> list[int] | None:
    try:
        return encode_chat(tokenizer, DIALOGUE)
    except UsageError:
        return None  # no template, or one that refuses a dialogue


def _weights(model: LlamaForCausalLM) -> Weights:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _unequal_weights(expected: Weights, found: Weights) -> list[str]:
    names = [name for name in found if name not in expected or not torch.equal(expected[name], found[name])]
    return names + [name for name in expected if name not in found]


def _unequal_modules(before: Stage, after: Stage, ids: Sequence[int], outputs: Mapping[str, Tensor]) -> list[str]:
    """The first module that computes otherwise with the same weights: the configs say something else."""
    twin = LlamaForCausalLM(before.model.config.replace(dtype="float32")).eval()
    twin.load_state_dict(_weights(after.model), strict=False)
    first, _ = first_difference(_run(twin, ids)[1], outputs)
    return [] if first is None else [f"{first} (with the same weights)"]


def _merged(before: Stage, after: Stage, offline: bool) -> Weights:
    """The base with its adapter merged into it, in the dtype that the merged model is stored in."""
    dtype = _stored_dtype(after, offline)
    model = load_pretrained(before.base, dtype=dtype, device="cpu", offline=offline).model
    load_adapter(model, find(before.name, offline=offline))
    merge_and_unload(model)
    return {name: weight.float() for name, weight in _weights(model).items()}


def _stored(before: Stage, after: Stage, offline: bool) -> Weights:
    """The weights as the formats of a GGUF file hold them: quantized and dequantized, or rounded."""
    _, _, tensors, _ = open_model(find(after.name, offline=offline))
    with tensors:
        storages = {name: tensors.storage(name) for name in tensors}
    own = _weights(before.model)
    return {name: _as(storages.get(name, "f32"), weight) for name, weight in own.items()}


def _as(storage: str, weight: Tensor) -> Tensor:
    if storage in FORMATS:
        return FORMATS[storage].dequantize(FORMATS[storage].quantize(weight))
    return weight.to(PLAIN[storage]).float()


def _rounded(before: Stage, after: Stage, offline: bool) -> Weights:
    """The weights of a GGUF file, rounded to the dtype that a folder stores them in."""
    dtype = _stored_dtype(after, offline)
    return {name: weight.to(dtype).float() for name, weight in _weights(before.model).items()}


def _stored_dtype(stage: Stage, offline: bool) -> torch.dtype:
    folder = find(stage.name, offline=offline)
    with open_checkpoint(folder) as tensors:
        return getattr(torch, chosen_dtype("auto", LlamaConfig.from_pretrained(folder), tensors))


Expect = Callable[[Stage, Stage, bool], Weights]
# The kinds of two neighbours: what leads from one to the other, what is computed again, and how; None: training.
EDGES: Mapping[tuple[str, str], tuple[str, str, Expect | None]] = {
    (FOLDER, ADAPTER): ("fine-tune", "", None),
    (GGUF, ADAPTER): ("fine-tune", "", None),
    (FOLDER, FOLDER): ("train", "", None),
    (ADAPTER, FOLDER): ("merge", "the merge", _merged),
    (FOLDER, GGUF): ("store", "the stored weights", _stored),
    (GGUF, GGUF): ("store", "the stored weights", _stored),
    (GGUF, FOLDER): ("store", "the stored weights", _rounded),
}
