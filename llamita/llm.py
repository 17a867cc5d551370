"""Text in, text out: a model and its tokenizer behind five verbs."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, overload

import torch
from torch import Tensor

from llamita.checkpoint.load import Loaded, load_pretrained
from llamita.errors import UsageError
from llamita.generation.chain import Chain
from llamita.generation.choice import Choice
from llamita.generation.completion import Completion, Stream
from llamita.generation.constrain import Constraint, Constraints, Grammar, Vocabulary, json_schema, lark, regex
from llamita.generation.constrain import choice as choice_of
from llamita.generation.distribution import Distribution
from llamita.generation.drafts import DraftModel
from llamita.generation.history import History
from llamita.generation.loop import Chooser, Feed, tokens
from llamita.generation.options import Options as Flags
from llamita.generation.prefix import Prefix
from llamita.generation.sampling import Sampler, Seed, generators, greedy_rows
from llamita.generation.slots import Slots
from llamita.generation.speculative import Acceptance
from llamita.generation.speculative import tokens as guess
from llamita.generation.stop import Row, Stop
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.chat import Message, encode_chat

Prompt = str | Sequence[int]  # a text, or its token ids
Watch = Callable[[Tensor, Tensor], None]  # told of a step's logits (B, V), as the model gave them, and its tokens (B,)


class Options(TypedDict, total=False):
    """How to write; what is not given comes from the checkpoint's generation_config.json.

    max_tokens: at most so many, without it to the end of the context. temperature: 0 takes the likeliest token each
    time; any of temperature, top_k (0 keeps all), top_p (1 keeps all) and min_p makes it draw. seed: the same seed,
    the same text; one number for all prompts, or one each. stop: texts that end the answer and are not part of it.
    repetition_penalty is of prompt and answer, presence_penalty and frequency_penalty (OpenAI's) of the answer alone.
    json_schema, regex, grammar (Lark) and choice: the form that the answer must have; one of them at most.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    grammar: str | None
    choice: Sequence[str] | None


class LLM:
    """A model that reads and writes text.

    draft: a smaller model of the same tokens that guesses ahead; `acceptance` then tells how well the last text went.
    """

    def __init__(self, loaded: Loaded, draft: LlamaForCausalLM | None = None) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.name = loaded.name
        self.draft = draft
        self.acceptance: Acceptance | None = None

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
        completions = [Completion.of(row, ids) for row, ids in zip(rows, prompts, strict=True)]
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
    ) -> Iterator[Any]:
        """The steps that write the rows."""
        ids, mask = (x.to(self.model.device) for x in _left_padded(prompts, self.tokenizer.pad_token_id or 0))
        settings, constraints = self._settings(options), self._constraints(options, len(prompts))
        history = History.begin(ids, mask)
        if self.draft is not None and constraints is None and watch is None and prefix is None:
            return self._guessed(ids, mask, rows, settings, options.get("seed"))
        choose: Chooser = Sampler(settings, history, seed=options.get("seed"), constraints=constraints)
        if watch is not None:
            choose = Watched(choose, watch)
        cache = None
        if prefix is not None:
            cache = prefix.take(prompts[0])
            ids = ids[:, cache.length :]
        feed = Feed(self.model, ids, attention_mask=mask, past_key_values=cache)
        steps = tokens(feed, choose=choose, stop=Stop(rows), pad_token_id=self.tokenizer.pad_token_id or 0)
        return steps if prefix is None else _recorded(steps, prefix)

    def _guessed(
        self, ids: Tensor, mask: Tensor, rows: list[Row], settings: Distribution, seed: Seed
    ) -> Iterator[list[list[int]]]:
        """The steps that write the rows with the draft model guessing ahead."""
        assert self.draft is not None
        seeded = generators(seed, len(rows), ids.device)
        chain = Chain(settings, rows=len(rows), device=ids.device, generators=seeded)
        greedy = greedy_rows(settings, len(rows))
        choice = Choice(len(rows), process=chain or None, greedy=greedy, generators=seeded, device=ids.device)
        self.acceptance = Acceptance()
        drafter = DraftModel(self.draft)
        text, stop = Slots(ids, mask), Stop(rows)
        return guess(self.model, text, drafter, stop=stop, choice=choice, acceptance=self.acceptance)

    def _settings(self, options: Options) -> Distribution:
        """What shapes the distribution: the call's options over the checkpoint's; UsageError for unknown ones."""
        if unknown := options.keys() - Options.__annotations__.keys():
            nearest = difflib.get_close_matches(min(unknown), Options.__annotations__, n=1, cutoff=0.0)[0]
            raise UsageError(f"there is no option {min(unknown)!r}: did you mean {nearest!r}?")
        given = {name: value for name in SETTINGS if (value := options.get(name)) is not None}
        checkpoint = self.model.generation_config
        saved = {name: checkpoint[name] for name in SETTINGS if checkpoint.get(name) is not None}
        draws = checkpoint.get("do_sample", False) or any(name in given for name in DRAWING)
        return Distribution(do_sample=draws, eos_token_id=self.tokenizer.eos_token_ids, **{**saved, **given})

    def _constraints(self, options: Options, rows: int) -> Constraints | None:
        """The form that the options ask of every row, or None."""
        forms = [name for name in FORMS if options.get(name) is not None]
        if len(forms) > 1:
            raise UsageError(f"{' and '.join(forms)} are two forms for one answer: give one of them")
        if not forms:
            return None
        grammar = FORMS[forms[0]](options.get(forms[0]))
        first = Constraint(grammar, self._vocabulary)
        return Constraints([first.fork() for _ in range(rows)])

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

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


DRAWING = ("temperature", "top_k", "top_p", "min_p")  # any of them makes a call draw
SETTINGS = (*DRAWING, "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
FORMS: Mapping[str, Callable[[Any], Grammar]] = {
    "json_schema": json_schema,
    "regex": regex,
    "grammar": lark,
    "choice": choice_of,
}


class Watched:
    """A chooser whose every step somebody else is told of."""

    def __init__(self, choose: Chooser, watch: Watch) -> None:
        self._choose = choose
        self._watch = watch

    def __call__(self, logits: Tensor) -> Tensor:
        """The next tokens (B,) for logits (B, V)."""
        chosen = self._choose(logits)
        self._watch(logits, chosen)
        return chosen

    def append(self, step: Tensor) -> None:
        """Take the tokens (B,) that the rows went on by."""
        self._choose.append(step)


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    draft: str | Path | None = None,
) -> LLM:
    """A model ready to write: "cria" or None for the embedded one, a folder, or a repository id on the hub.

    draft: a smaller model of the same tokens, named in the same way, which guesses ahead and changes no answer.
    See `llamita.checkpoint.load.load_pretrained` for the options and errors.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device, "offline": offline}
    options["attn_implementation"] = attn_implementation
    loaded = load_pretrained(name, revision=revision, **options)
    return LLM(loaded, None if draft is None else load_pretrained(draft, **options).model)


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
