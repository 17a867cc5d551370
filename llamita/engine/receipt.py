"""Receipts: all that determines an answer, so that anybody with the model and the prompt can write it again."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from types import NoneType
from typing import Any, Self, cast

import torch

from llamita.checks import quoted
from llamita.errors import BrokenFileError
from llamita.generation.completion import Completion, completion_of
from llamita.generation.decode import note_prompts
from llamita.generation.logprobs import TokenLogprob
from llamita.generation.plan import plan
from llamita.generation.request import GenerationRequest
from llamita.generation.text_options import SETTINGS, TextModel, TextOptions
from llamita.model.fingerprint import weights_digest
from llamita.model.llama import LlamaForCausalLM
from llamita.model.plan import processes_of
from llamita.model.stored import StoredWeight
from llamita.plans.cpu import is_fused
from llamita.structured.forms import FORMS
from llamita.structured.grammar import Grammar

VERSION = 1


@dataclass(frozen=True)
class ModelFacts:
    """What an answer depends on besides its request.

    weights, tokenizer, chat_template: sha256; the weights are those that compute, with a merged adapter. arithmetic: of
    each format of weights, the digest that our kernels give on every CPU; or what else computes, whose bits are
    promised nowhere else. adapter: the sha256 of its files, None without one. end_tokens: the ids that end an answer,
    None in a receipt of a version that did not note them.
    """

    weights: str
    tokenizer: str
    chat_template: str | None
    arithmetic: Mapping[str, str]
    adapter: str | None = None
    end_tokens: Sequence[int] | None = None

    @classmethod
    def of(cls, texts: TextModel) -> Self:
        """The facts of a model; reads all of its weights once."""
        template = texts.tokenizer.chat_template
        return cls(
            weights=weights_digest(texts.model),
            tokenizer=_sha256(texts.tokenizer.to_json().encode()),
            chat_template=None if template is None else _sha256(template.encode()),
            arithmetic=_arithmetic(texts.model),
            adapter=texts.adapter,
            end_tokens=sorted(texts.tokenizer.eos_token_ids),
        )

    @property
    def system_fingerprint(self) -> str:
        """Their short form, for OpenAI's field of that name."""
        return f"fp_{_sha256(json.dumps(asdict(self), sort_keys=True).encode())[:16]}"


@dataclass(frozen=True)
class Receipt:
    """What determines an answer, and digests of what was read and written.

    options: the request's settings, those of the checkpoint included, and its seed. prompt, tokens: sha256 of the ids.
    logprobs, prompt_logprobs: sha256 of their fp32 numbers, None where they were not asked for.
    """

    model: str
    facts: ModelFacts
    options: Mapping[str, Any]
    reads_on: bool
    prompt: str
    prompt_tokens: int
    tokens: str
    completion_tokens: int
    finish_reason: str | None
    logprobs: str | None = None
    prompt_logprobs: str | None = None
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "system_fingerprint": self.facts.system_fingerprint}

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """From JSON. Raises BrokenFileError for what is no receipt, and for one of another version."""
        if not isinstance(values, Mapping) or values.get("version") != VERSION:
            raise BrokenFileError(f"this is no receipt of version {VERSION}: give a file that llamita serve made")
        try:
            facts = ModelFacts(**values["facts"])
            named = {name: value for name, value in values.items() if name not in ("facts", "system_fingerprint")}
            receipt = cls(facts=facts, **named)
        except (TypeError, KeyError) as error:
            raise BrokenFileError(f"the receipt is damaged: {error}") from error
        for record, kinds in ((facts, FACTS), (receipt, FIELDS)):
            for name, kind in kinds.items():
                if not isinstance(value := getattr(record, name), kind):
                    raise BrokenFileError(f"the receipt is damaged: {name} is {quoted(value)}")
        return receipt


TEXT_OR_NONE = (str, NoneType)
# What the fields of a file must be; its options are checked as those of any request.
FACTS: Mapping[str, type | tuple[type, ...]] = {
    "weights": str, "tokenizer": str, "chat_template": TEXT_OR_NONE, "arithmetic": Mapping, "adapter": TEXT_OR_NONE,
    "end_tokens": (Sequence, NoneType),
}  # fmt: skip
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "model": str, "options": Mapping, "reads_on": bool, "prompt": str, "prompt_tokens": int, "tokens": str,
    "completion_tokens": int, "finish_reason": TEXT_OR_NONE, "logprobs": TEXT_OR_NONE, "prompt_logprobs": TEXT_OR_NONE,
}  # fmt: skip


def receipt_of(
    model: str, facts: ModelFacts, request: GenerationRequest, prompt: Sequence[int], completion: Completion
) -> Receipt:
    """The receipt of a finished text."""
    return Receipt(
        model=model,
        facts=facts,
        options=options_of(request),
        reads_on=request.reads_on,
        prompt=tokens_digest(prompt),
        prompt_tokens=len(prompt),
        tokens=tokens_digest(completion.token_ids),
        completion_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        logprobs=None if completion.logprobs is None else logprobs_digest(completion.logprobs),
        prompt_logprobs=None if completion.prompt_logprobs is None else logprobs_digest(completion.prompt_logprobs),
    )


def options_of(request: GenerationRequest) -> dict[str, Any]:
    """The options that ask for the same text of a checkpoint whose own settings are others."""
    settings = request.settings
    options = {name: getattr(settings, name) for name in SETTINGS}
    options |= {"temperature": options["temperature"] if settings.do_sample else 0.0}
    options |= {name: getattr(settings, name) for name in (*FORMS, "logprobs", "seed")}
    most, least = request.limits[0], cast("int | None", settings.min_new_tokens)
    options |= {"max_tokens": most, "min_tokens": min(most, least) if least else None}
    options |= {"stop": settings.stops or None, "stop_token_ids": list(request.ending.token_ids) or None}
    options |= {"include_stop_str_in_output": request.ending.is_shown or None}
    options |= {"prompt_logprobs": request.prompt_logprobs}
    options |= {"ignore_eos": not settings.eos_token_ids or None, "heal": settings.token_healing or None}
    if isinstance(grammar := options["grammar"], Grammar):
        options["grammar"] = {"llguidance": grammar.source}
    if options["logit_bias"] is not None:
        options["logit_bias"] = {str(token): value for token, value in options["logit_bias"].items()}
    return {name: value for name, value in options.items() if value is not None}


def text_options(receipt: Receipt) -> TextOptions:
    """The options of a receipt, as `LLM` and the engine take them. Raises BrokenFileError for damaged ones."""
    options = dict(receipt.options)
    try:
        if isinstance(grammar := options.get("grammar"), Mapping):
            options["grammar"] = Grammar(grammar["llguidance"])
        if "logit_bias" in options:
            options["logit_bias"] = {int(token): value for token, value in options["logit_bias"].items()}
    except (AttributeError, KeyError, ValueError) as error:
        raise BrokenFileError(f"the options of the receipt are damaged: {error}") from error
    return cast("TextOptions", options)


def replay(
    receipt: Receipt, texts: TextModel, prompt: Sequence[int], facts: ModelFacts | None = None
) -> tuple[Completion, Receipt]:
    """Write a receipt's answer again, alone; returns it with a receipt of its own, to compare with the first.

    facts: of the model, if they are known already.
    """
    request = texts.request([list(prompt)], text_options(receipt), reads_on=receipt.reads_on)
    run = plan(request)
    note_prompts(request, run.sequences)
    for _ in run.steps:
        pass
    completion = completion_of(run.sequences[0])
    return completion, receipt_of(receipt.model, facts or ModelFacts.of(texts), request, prompt, completion)


def differences(receipt: Receipt, other: Receipt) -> list[str]:
    """In one sentence each, what two receipts do not agree in: first what an answer depends on, then the answer."""
    mine, its = _facts(receipt.facts), _facts(other.facts)
    if mine["weights"] == its["weights"]:  # then an adapter has made no difference
        mine["adapter"] = its["adapter"]
    if None in (mine["end_tokens"], its["end_tokens"]):
        mine["end_tokens"] = its["end_tokens"] = None
    found = [
        f"{name} is {_short(theirs)} in the receipt and {_short(ours)} here" for name, theirs, ours in _pairs(mine, its)
    ]
    of_prompt = ("prompt", "prompt_logprobs", "options", "reads_on")
    names = (*of_prompt, "tokens", "logprobs", "finish_reason", "completion_tokens")
    mine, its = ({name: getattr(one, name) for name in names} for one in (receipt, other))
    return found + [
        f"{name} is {_short(theirs)} in the receipt and {_short(ours)} now" for name, theirs, ours in _pairs(mine, its)
    ]


def tokens_digest(token_ids: Iterable[int]) -> str:
    """The sha256 of token ids, as little-endian 64-bit numbers."""
    numbers = array("q", token_ids)
    if array("H", [1]).tobytes() != b"\x01\x00":
        numbers.byteswap()
    return _sha256(numbers.tobytes())


def logprobs_digest(logprobs: Iterable[TokenLogprob]) -> str:
    """The sha256 of tokens with their log-probabilities, and of the alternatives."""
    sha = hashlib.sha256()
    for entry in logprobs:
        for one in (entry, *entry.top):
            sha.update(f"{one.token_id} {one.logprob.hex()} ".encode())
    return sha.hexdigest()


def _arithmetic(model: LlamaForCausalLM) -> dict[str, str]:
    if not is_fused(model):
        where = f"{torch.__version__} on {model.device.type}, {torch.backends.cpu.get_cpu_capability()}"
        processes = processes_of(model)  # that share each matrix
        return {"torch": where if processes == 1 else f"{where}, {processes} processes"}
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    formats = {names[parameter.dtype] for parameter in model.parameters()}
    stored = (module.matrix for module in model.modules() if isinstance(module, StoredWeight))
    formats |= {getattr(matrix, "format_name", "?") for matrix in stored}
    return {name: _kernel_digests().get(name, "?")[:16] for name in sorted(formats)}


@lru_cache(maxsize=1)
def _kernel_digests() -> dict[str, str]:
    """The digests of `llamita verify --arithmetic`, which every machine's kernels give."""
    return json.loads((files("llamita") / "arithmetic.json").read_text(encoding="utf-8"))


def _facts(facts: ModelFacts) -> dict[str, Any]:
    return {**asdict(facts), "arithmetic": ", ".join(f"{name} {digest}" for name, digest in facts.arithmetic.items())}


def _pairs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*theirs, *ours)):
        if theirs.get(name) != ours.get(name):
            yield name, theirs.get(name), ours.get(name)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
