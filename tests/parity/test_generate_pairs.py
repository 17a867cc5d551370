"""generate's flags, drawn at random two or three at a time, against transformers: the same tokens, or both refuse."""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.bridge import transformers as peers
from llamita.cache import DynamicCache
from llamita.config import LlamaConfig
from llamita.errors import LlamitaError
from llamita.model.llama import LlamaForCausalLM

CASES = 100
Case = dict[str, Any]


def lift(ids: Tensor, logits: Tensor) -> Tensor:
    """A processor of a user."""
    return logits.scatter_add(1, ids[:, -1:], torch.full((len(ids), 1), 2.0))


def long(ids: Tensor, scores: Any, **_: Any) -> Tensor:
    """A criterion of a user."""
    return ids[:, -1] % 7 == 3


class Ear:
    """A streamer that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append("end")


# Every flag that both have, with values; what a test must make anew for each library is a function of the library.
FLAGS: Mapping[str, Sequence[Any]] = {
    "do_sample": (True, True, False),
    "num_beams": (1, 2, 3, 5),
    "num_return_sequences": (1, 2, 3),
    "temperature": (0.3, 0.9, 1.0, 2.5),
    "top_k": (0, 1, 5, 97, 200, None),
    "top_p": (0.0, 0.3, 0.9, 1.0, None),
    "min_p": (0.05, 0.5, 1.0),
    "top_h": (0.3, 0.8),
    "typical_p": (0.2, 0.9),
    "epsilon_cutoff": (0.001, 0.05),
    "eta_cutoff": (0.001, 0.05),
    "repetition_penalty": (0.7, 1.0, 1.5),
    "encoder_repetition_penalty": (0.7, 1.4),
    "no_repeat_ngram_size": (1, 2, 3),
    "encoder_no_repeat_ngram_size": (1, 2),
    "bad_words_ids": ([[5], [7, 8]], [[11]]),
    "sequence_bias": ([[[5], 9.0], [[6, 7], -4.0]],),
    "suppress_tokens": ([3, 4, 5, 60], [2000]),
    "begin_suppress_tokens": ([9, 10, 40],),
    "forced_bos_token_id": (4,),
    "forced_eos_token_id": (17, [17, 18]),
    "eos_token_id": (17, list(range(20, 60)), [5, 6], None),
    "pad_token_id": (0, 3),
    "min_length": (0, 9, 12),
    "min_new_tokens": (0, 3, 20),
    "max_new_tokens": (1, 2, 9),
    "max_length": (8, 14),
    "exponential_decay_length_penalty": ((2, 1.5), (0, 1.1)),
    "remove_invalid_values": (True,),
    "renormalize_logits": (True,),
    "length_penalty": (-1.5, 0.0, 2.0),
    "early_stopping": (True, False, "never"),
    "use_cache": (False, True),
    "cache_implementation": ("static", "dynamic", "offloaded"),
    "prefill_chunk_size": (1, 3, 50),
    "guidance_scale": (0.8, 1.0, 1.7),
    "watermarking_config": ({"bias": 3.0}, {"bias": 2.0, "seeding_scheme": "selfhash", "context_width": 2}),
    "prompt_lookup_num_tokens": (2, 4),
    "max_matching_ngram_size": (1, 3),
    "output_scores": (True,),
    "output_logits": (True,),
    "output_hidden_states": (True,),
    "output_attentions": (True,),
    "return_dict_in_generate": (True,),
    "logits_to_keep": (0, 2),
    "position_ids": (True,),
    "inputs_embeds": (True,),
    "past_key_values": ("own", "foreign"),
    "streamer": (True,),
    "logits_processor": (True,),
    "stopping_criteria": (True,),
    "assistant_model": (True,),
    "negative_prompt_ids": (True,),
    "prefix_allowed_tokens_fn": (lambda row, ids: [5 + row, 6, 40 + len(ids) % 20, 17],),
    "max_time": (1000.0,),
    "generation_config": ({"repetition_penalty": 1.3, "top_k": 7}, {"num_beams": 2}, {"max_length": 9}),
}


COUNTING = ("encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "sequence_bias")
# Where the two are known to differ: why (docs/differences.md), and which cases are so.
KNOWN: Mapping[str, Callable[[Case], bool]] = {
    "padding is no text here": lambda case: case["padded"] and any(name in case["flags"] for name in COUNTING),
    "guesses exclude beams, and what one pass a token needs": lambda case: guesses(case) and takes_no_guesses(case),
    "guesses are told of token by token": lambda case: guesses(case) and "streamer" in case["flags"],
    "guesses behind a cache are those of plain decoding": lambda case: (
        guesses(case) and "past_key_values" in case["flags"]
    ),
    "padding is not looked up": lambda case: case["padded"] and "prompt_lookup_num_tokens" in case["flags"],
    "a beam's negative text is its own": lambda case: beams(case) > 1 and is_guided(case),
    "a cache that is given is used": lambda case: (
        case["flags"].get("use_cache") is False and "past_key_values" in case["flags"]
    ),
}


def beams(case: Case) -> int:
    """How many beams a case has, by the call or by its generation config."""
    flags = case["flags"]
    return flags.get("num_beams", flags.get("generation_config", {}).get("num_beams", 1))


def is_guided(case: Case) -> bool:
    """Whether a case steers away from a negative text."""
    return "negative_prompt_ids" in case["flags"] or case["flags"].get("guidance_scale", 1) != 1


def guesses(case: Case) -> bool:
    """Whether a case guesses ahead."""
    return "prompt_lookup_num_tokens" in case["flags"] or "assistant_model" in case["flags"]


def takes_no_guesses(case: Case) -> bool:
    """Whether a case asks for what guessing ahead refuses."""
    names = ("inputs_embeds", "position_ids", "logits_to_keep", "stopping_criteria", "output_hidden_states")
    flags = case["flags"]
    asks = any(name in flags for name in (*names, "output_attentions")) or is_guided(case)
    return asks or beams(case) > 1 or flags.get("cache_implementation") == "static"


@pytest.fixture(scope="module")
def pairs(tiny_config: LlamaConfig) -> list[tuple[LlamaForCausalLM, Any]]:
    """Two models and their twins; of each pair the first guesses ahead for the other."""
    found = []
    for seed, layers in ((5, 2), (6, 1)):
        torch.manual_seed(seed)
        config = tiny_config.replace(
            num_hidden_layers=layers, initializer_range=0.3, bos_token_id=1, eos_token_id=None, pad_token_id=0
        )
        ours = LlamaForCausalLM(config).eval()
        found.append((ours, peers.twin(ours)))
    return found


def drawn(number: int) -> Case:
    """The flags of a case, with the seed and the shape of its prompts."""
    lots = random.Random(number)
    names = lots.sample([*FLAGS], lots.choice((2, 2, 3)))
    flags = {name: lots.choice(FLAGS[name]) for name in names}
    if lots.random() < 0.3:
        flags.setdefault("do_sample", True)
    return {"flags": flags, "rows": lots.choice((1, 2, 3)), "padded": lots.random() < 0.4, "seed": number}


def arguments(case: Case, models: Sequence[Any], library: Any | None) -> Case:
    """The call of one library: `library` is transformers, None is ours."""
    flags: Case = {"max_new_tokens": 6, "pad_token_id": 0, **case["flags"]}
    if "stopping_criteria" in flags:  # transformers pads rows that ended only where there is an end token
        flags["eos_token_id"] = flags.get("eos_token_id") or 96
    if "max_length" in case["flags"]:
        flags.pop("max_new_tokens")
    generator = torch.Generator().manual_seed(case["seed"])
    ids = torch.randint(3, 97, (case["rows"], 6), generator=generator)
    ids[:, 3:5] = ids[:, :2]  # something to look up
    mask = torch.ones_like(ids)
    if case["padded"]:
        mask[-1, :2] = 0
        ids = ids.masked_fill(mask == 0, 0)
    flags["attention_mask"] = mask
    if flags.pop("position_ids", False):
        flags["position_ids"] = torch.arange(6).expand(len(ids), -1) * 2
    if kind := flags.pop("past_key_values", None):
        flags["past_key_values"] = _read(kind, ids, mask, models[0], library)
    if flags.pop("inputs_embeds", False):
        flags["inputs_embeds"] = models[0].get_input_embeddings()(ids).detach()
    else:
        flags["input_ids"] = ids
    if flags.pop("negative_prompt_ids", False):
        flags["negative_prompt_ids"] = ids.flip(1)[:, :4]
        flags.setdefault("guidance_scale", 1.5)
    if "generation_config" in flags and library is not None:
        flags["generation_config"] = library.GenerationConfig(**flags["generation_config"])
    if flags.pop("streamer", False):
        flags["streamer"] = Ear()
    for name, one, kind in (("logits_processor", lift, "Logits"), ("stopping_criteria", long, "Stopping")):
        if flags.pop(name, False):
            wrap = list if library is None else _LISTS[kind](library)
            flags[name] = wrap([one])
    if flags.pop("assistant_model", False):
        flags["assistant_model"] = models[1]
    if library is not None and isinstance(flags.get("watermarking_config"), dict):
        flags["watermarking_config"] = library.WatermarkingConfig(**flags["watermarking_config"])
    if library is not None and flags.get("cache_implementation") == "static":
        flags["disable_compile"] = True
    return flags


_LISTS: Mapping[str, Callable[[Any], Any]] = {
    "Logits": lambda library: library.LogitsProcessorList,
    "Stopping": lambda library: library.StoppingCriteriaList,
}


def _read(kind: str, ids: Tensor, mask: Tensor, model: Any, library: Any | None) -> Any:
    """A cache that holds the first three tokens."""
    is_ours = library is None and kind == "own"
    cache = DynamicCache() if is_ours else peers.library().DynamicCache()
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        model(ids[:, :3], attention_mask=mask[:, :3], position_ids=places[:, :3], past_key_values=cache, use_cache=True)
    return cache


def called(case: Case, models: Sequence[Any], library: Any | None) -> Any:
    """What a library writes and its streamer hears, or the error that it raises."""
    torch.manual_seed(case["seed"])
    flags = arguments(case, models, library)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return models[0].generate(**flags), getattr(flags.get("streamer"), "heard", None)
    except Exception as error:
        return error


def difference(case: Case, pairs: Sequence[tuple[Any, Any]]) -> str | None:
    """How the two libraries differ where they should not, or None."""
    if any(is_so(case) for is_so in KNOWN.values()):
        return None
    ours = called(case, [pair[0] for pair in pairs], None)
    theirs = called(case, [pair[1] for pair in pairs], peers.library())
    if isinstance(ours, Exception):
        if not isinstance(ours, LlamitaError):
            return f"a traceback: {ours!r}"
        return None if isinstance(theirs, Exception) else f"refused: {ours}"
    if isinstance(theirs, Exception):
        return None  # we write what they cannot
    (mine, heard), (peer, peer_heard) = ours, theirs
    a, b = (x if isinstance(x, Tensor) else x.sequences for x in (mine, peer))
    if a.tolist() != b.tolist():
        return f"tokens {a.tolist()} against {b.tolist()}"
    if heard != peer_heard:
        return f"heard {heard} against {peer_heard}"
    return None if isinstance(a, type(mine)) else _records(mine, peer)


def _records(mine: Any, peer: Any) -> str | None:
    for name in ("scores", "logits", "sequences_scores", "beam_indices"):
        a, b = mine.get(name), peer.get(name)
        if (a is None) != (b is None):
            return f"{name} is {type(a).__name__} against {type(b).__name__}"
        if a is None:
            continue
        a, b = (x if isinstance(x, Tensor) else torch.stack(x) for x in (a, b))
        if a.shape != b.shape or a.dtype != b.dtype or not torch.allclose(a, b, rtol=1e-4, atol=1e-4):
            return f"{name} of {tuple(a.shape)} differ from {tuple(b.shape)}"
    for name in ("hidden_states", "attentions"):
        a, b = (x.get(name) and [len(step) for step in x[name]] for x in (mine, peer))
        if a != b:
            return f"{name} of {a} layers a step against {b}"
    return None


@pytest.mark.parametrize("part", range(4))
def test_random_flags(pairs: list[tuple[LlamaForCausalLM, Any]], part: int) -> None:
    found = []
    for number in range(part * CASES // 4, (part + 1) * CASES // 4):
        if told := difference(case := drawn(number), pairs):
            found.append(f"{case}: {told}")
    assert not found, "\n".join(found)
