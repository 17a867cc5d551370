"""Text in, text out: a model and its tokenizer behind five verbs."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, overload

import torch
from torch import Tensor

from llamita.checkpoint.load import Loaded, load_pretrained
from llamita.errors import UsageError
from llamita.generation.loop import Feed, tokens
from llamita.generation.options import Options as Flags
from llamita.generation.prefix import Prefix
from llamita.generation.sampling import Sampler
from llamita.generation.stop import Row, Stop
from llamita.tokenizer.chat import Message, encode_chat

Prompt = str | Sequence[int]  # a text, or its token ids
Watch = Callable[[Tensor, Tensor], None]  # told of a step's logits (B, V), as the model gave them, and its tokens (B,)


class Options(TypedDict, total=False):
    """How to write; what is not given comes from the checkpoint's generation_config.json.

    max_tokens: at most so many, without it to the end of the context. temperature: 0 takes the likeliest token each
    time; any of temperature, top_k (0 keeps all) and top_p (1 keeps all) makes it draw. seed: the same seed, the same
    text; one number for all prompts, or one each. stop: texts that end the answer and are not part of it.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | Sequence[int] | None
    stop: str | Sequence[str] | None


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Completion:
    """What was written, and why it ended.

    finish_reason: "stop" at an end token or a stop text, which stop_reason then names; "length" at the limit or the
    end of the context; None while it is not over.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None = None

    @property
    def usage(self) -> Usage:
        """Tokens read and written."""
        return Usage(len(self.prompt_token_ids), len(self.token_ids))

    def __str__(self) -> str:
        return self.text


class Stream(Iterator[str]):
    """Pieces of text as they are written; `completion` is what there is so far, and at the end all of it."""

    def __init__(self, steps: Iterator[Tensor], row: Row, prompt_token_ids: list[int]) -> None:
        self._steps = steps
        self._row = row
        self._prompt = prompt_token_ids
        self._shown = 0

    def __next__(self) -> str:
        for _ in self._steps:
            if piece := self._row.text[self._shown :]:
                self._shown = len(self._row.text)
                return piece
        raise StopIteration

    @property
    def completion(self) -> Completion:
        """The text so far."""
        return _completion(self._row, self._prompt)


class LLM:
    """A model that reads and writes text."""

    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.name = loaded.name

    def __repr__(self) -> str:
        size = f"{self.model.num_parameters():,} parameters"
        return f"LLM({self.name!r}, {size}, {str(self.model.dtype).removeprefix('torch.')}, {self.model.device})"

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt and its continuation have together."""
        return self.model.config.max_position_embeddings

    # A str is also a sequence of str: the first signature is meant to win.
    @overload
    def generate(self, prompt: str, **options: Unpack[Options]) -> Completion: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def generate(self, prompt: Sequence[Prompt], **options: Unpack[Options]) -> list[Completion]: ...
    @overload
    def generate(self, prompt: Sequence[int], **options: Unpack[Options]) -> Completion: ...

    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Unpack[Options]) -> Completion | list[Completion]:
        """Continue a text, or several at once, each as if it were alone.

        Raises UsageError for an empty prompt, for one that fills the context, and for wrong options.
        """
        several, is_one = _listed(prompt)
        prompts = [self._read(one) for one in several]
        if not prompts:
            return []
        rows = [self._row(ids, options, after=ids) for ids in prompts]
        for _ in self._steps(prompts, rows, options):
            pass
        completions = [_completion(row, ids) for row, ids in zip(rows, prompts, strict=True)]
        return completions[0] if is_one else completions

    def stream(
        self, prompt: Prompt, *, prefix: Prefix | None = None, watch: Watch | None = None, **options: Unpack[Options]
    ) -> Stream:
        """Continue a text, piece by piece.

        `prefix` keeps what was read for the next text that begins alike, `watch` is told of every step.
        """
        ids = self._read(prompt)
        row = self._row(ids, options, after=ids)
        return Stream(self._steps([ids], [row], options, prefix, watch), row, ids)

    def chat(
        self, messages: Sequence[Message], *, continue_final_message: bool = False, **options: Unpack[Options]
    ) -> Completion:
        """Answer a conversation: messages of role and content, in the checkpoint's own chat format.

        continue_final_message: the last message is the beginning of the answer, which goes on from it.
        Raises UsageError where the checkpoint has no chat template, nor the control tokens of a format of Llama's.
        """
        stream = self.stream_chat(messages, continue_final_message=continue_final_message, **options)
        for _ in stream:
            pass
        return stream.completion

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        continue_final_message: bool = False,
        prefix: Prefix | None = None,
        watch: Watch | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Answer a conversation, piece by piece; the arguments are those of `chat` and `stream`."""
        ids = self._read(encode_chat(self.tokenizer, messages, continue_final_message=continue_final_message))
        row = self._row(ids, options, after=ids if continue_final_message else ())
        return Stream(self._steps([ids], [row], options, prefix, watch), row, ids)

    def new_prefix(self) -> Prefix:
        """An empty `prefix` for `stream` and `stream_chat`."""
        return Prefix(self.model.config.num_hidden_layers)

    def _read(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, checked."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token_id) for token_id in prompt]
        if not ids:
            raise UsageError("the prompt is empty: give the model a text to continue")
        if len(ids) >= self.context_length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, the model reads at most {self.context_length} and needs room to "
                "write: shorten it"
            )
        if outside := [i for i in ids if not 0 <= i < self.model.config.vocab_size]:
            raise UsageError(f"token id {outside[0]} is outside the vocabulary of {self.model.config.vocab_size}")
        return ids

    def _steps(
        self,
        prompts: list[list[int]],
        rows: list[Row],
        options: Options,
        prefix: Prefix | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Tensor]:
        """The steps (B,) that write the rows."""
        sampler = self._sampler(options, len(prompts))
        choose = sampler if watch is None else _watched(sampler, watch)
        ids, mask = _left_padded(prompts, self.tokenizer.pad_token_id or 0)
        cache = None
        if prefix is not None:
            cache = prefix.take(prompts[0])
            ids = ids[:, cache.length :]
        device = self.model.device
        feed = Feed(self.model, ids.to(device), attention_mask=mask.to(device), past_key_values=cache)
        steps = tokens(feed, choose=choose, stop=Stop(rows), pad_token_id=self.tokenizer.pad_token_id or 0)
        return steps if prefix is None else _recorded(steps, prefix)

    def _sampler(self, options: Options, rows: int) -> Sampler:
        if unknown := options.keys() - Options.__annotations__.keys():
            nearest = difflib.get_close_matches(min(unknown), Options.__annotations__, n=1, cutoff=0.0)[0]
            raise UsageError(f"there is no option {min(unknown)!r}: did you mean {nearest!r}?")
        given = {name: value for name in ("temperature", "top_k", "top_p") if (value := options.get(name)) is not None}
        checkpoint = self.model.generation_config
        if not given and not checkpoint.get("do_sample"):
            return Sampler(rows, temperature=0.0, device=self.model.device)
        saved = {name: checkpoint[name] for name in SAMPLING if checkpoint.get(name) is not None}
        settings: dict[str, Any] = {**SAMPLING, **saved, **given}
        return Sampler(rows, seed=options.get("seed"), device=self.model.device, **settings)

    def _row(self, prompt: list[int], options: Options, *, after: Sequence[int] = ()) -> Row:
        """The row that is to follow a prompt; its text goes on from that of the ids `after`, or stands alone."""
        room = self.context_length - len(prompt)
        most = options.get("max_tokens")
        if most is None:
            most = self.model.generation_config.get("max_new_tokens") or room
        if most < 1:
            raise UsageError(f"max_tokens is {most}: it must be at least 1")
        stops = Flags(stop_strings=options.get("stop")).stops
        ends = self.tokenizer.eos_token_ids
        return Row(min(most, room), eos_token_ids=ends, strings=stops, tokenizer=self.tokenizer, after=after)


# What neither the call nor the checkpoint says: draw from the model's own distribution.
SAMPLING: Mapping[str, float] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> LLM:
    """A model ready to write: "cria" or None for the embedded one, a folder, or a repository id on the hub.

    See `llamita.checkpoint.load.load_pretrained` for the options and errors.
    """
    loaded = load_pretrained(
        name,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
        revision=revision,
        offline=offline,
    )
    return LLM(loaded)


def _listed(prompt: Prompt | Sequence[Prompt]) -> tuple[Sequence[Prompt], bool]:
    """The prompts as a list, and whether there was only one, not in a list."""
    is_one = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], int))
    return cast("Sequence[Prompt]", [prompt] if is_one else prompt), is_one


def _left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T), the padding on the left, so that all rows go on at the same slot."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _recorded(steps: Iterator[Tensor], prefix: Prefix) -> Iterator[Tensor]:
    for step in steps:
        prefix.append(int(step))
        yield step


def _watched(choose: Callable[[Tensor], Tensor], watch: Watch) -> Callable[[Tensor], Tensor]:
    def choose_and_tell(logits: Tensor) -> Tensor:
        chosen = choose(logits)
        watch(logits, chosen)
        return chosen

    return choose_and_tell


def _completion(row: Row, prompt_token_ids: list[int]) -> Completion:
    reason, matched = (None, None) if row.finish is None else (row.finish.reason, row.finish.matched)
    return Completion(row.text, row.token_ids, prompt_token_ids, reason, matched)
