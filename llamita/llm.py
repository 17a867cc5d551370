"""Text in, text out: a model and its tokenizer behind five verbs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, cast, overload

import torch
from torch import Tensor

from llamita.checkpoint.load import Loaded, load_pretrained
from llamita.errors import UsageError
from llamita.generation import text_options
from llamita.generation.completion import Completion, Stream, Writing
from llamita.generation.decode import Chooser, ModelRunner, Watched, tokens
from llamita.generation.logprobs import LogprobRecorder, TokenLogprob, TokenTexts
from llamita.generation.outputs import Logprobs, prompt_logprobs
from llamita.generation.prefix_cache import Prefix
from llamita.generation.sequence import Row, Stop
from llamita.generation.speculative import verify
from llamita.generation.speculative.proposers import DraftModelProposer
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.generation.speculative.verify import Acceptance
from llamita.generation.text_options import TextOptions
from llamita.model.fingerprint import fingerprint
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.history import History
from llamita.sampling.params import SamplingParams
from llamita.sampling.processor_list import LogitsProcessorList
from llamita.sampling.sampler import Sampler, generators, greedy_rows
from llamita.sampling.selection import TokenSelector
from llamita.structured import grammar, healing
from llamita.structured.grammar import Constraint, Constraints
from llamita.structured.stateless import StatelessConstraint
from llamita.tokenizer.chat import Message, encode_chat

Prompt = str | Sequence[int]  # a text, or its token ids
Watch = Callable[[Tensor, Tensor], None]  # told of a step's logits (B, V), as the model gave them, and its tokens (B,)
Tool = Mapping[str, Any]


class LLM:
    """A model that reads and writes text.

    draft: a smaller model of the same tokens that guesses ahead; `acceptance` then tells how well the last text went.
    A text that is watched, given a prefix or has its logprobs noted is written token by token.
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
    def generate(self, prompt: str, **options: Unpack[TextOptions]) -> Completion: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def generate(self, prompt: Sequence[Prompt], **options: Unpack[TextOptions]) -> list[Completion]: ...
    @overload
    def generate(self, prompt: Sequence[int], **options: Unpack[TextOptions]) -> Completion: ...

    def generate(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[TextOptions]
    ) -> Completion | list[Completion]:
        """Continue a text, or several at once, each as if it were alone.

        Raises UsageError for an empty prompt, for one that fills the context, and for wrong options.
        """
        several, is_one = _listed(prompt)
        prompts = [self._read(one) for one in several]
        steps, writings = self._begin(prompts, options, goes_on=True)
        for _ in steps:
            pass
        completions = [writing.completion for writing in writings]
        return completions[0] if is_one else completions

    def stream(
        self,
        prompt: Prompt,
        *,
        prefix: Prefix | None = None,
        watch: Watch | None = None,
        **options: Unpack[TextOptions],
    ) -> Stream:
        """Continue a text, piece by piece.

        `prefix` keeps what was read for the next text that begins alike, `watch` is told of every step.
        """
        steps, writings = self._begin([self._read(prompt)], options, goes_on=True, prefix=prefix, watch=watch)
        return Stream(steps, writings[0])

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[TextOptions],
    ) -> Completion:
        """Answer a conversation: messages of role and content, in the checkpoint's own chat format.

        tools: functions that may be called, as templates get them; the answer's `tool_calls` are its calls of them,
        and the option grammar=toolcalls.grammar(tools) lets it be nothing else.
        continue_final_message: the last message is the beginning of the answer, which goes on from it.
        Raises UsageError where the checkpoint has no chat template, nor the control tokens of a format of Llama's.
        """
        stream = self.stream_chat(messages, tools=tools, continue_final_message=continue_final_message, **options)
        for _ in stream:
            pass
        return stream.completion

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        continue_final_message: bool = False,
        prefix: Prefix | None = None,
        watch: Watch | None = None,
        **options: Unpack[TextOptions],
    ) -> Stream:
        """Answer a conversation, piece by piece; the arguments are those of `chat` and `stream`."""
        goes_on = continue_final_message
        ids = self._read(encode_chat(self.tokenizer, messages, tools=tools, continue_final_message=goes_on))
        names = tuple(str(tool.get("function", tool).get("name")) for tool in tools or ())
        steps, writings = self._begin([ids], options, goes_on=goes_on, tools=names, prefix=prefix, watch=watch)
        return Stream(steps, writings[0])

    def new_prefix(self) -> Prefix:
        """An empty `prefix` for `stream` and `stream_chat`."""
        return Prefix(self.model.config.num_hidden_layers)

    def save_prefix(self, path: str | Path, prefix: Prefix) -> None:
        """Write what a prefix has read to a file, so that no later process need read it again.

        Raises UsageError where it has read nothing yet, and the disk's errors.
        """
        prefix.save(Path(path), fingerprint=fingerprint(self.model))

    def load_prefix(self, path: str | Path) -> Prefix:
        """A prefix from a file of `save_prefix`: texts that begin alike are read on from there.

        Raises UsageError where another model read it, NotFoundError, AccessError, or BrokenFileError.
        """
        layers, device = self.model.config.num_hidden_layers, self.model.device
        return Prefix.load(Path(path), layers=layers, fingerprint=fingerprint(self.model), device=device)

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

    def _begin(
        self,
        prompts: list[list[int]],
        options: TextOptions,
        *,
        goes_on: bool,
        tools: tuple[str, ...] = (),
        prefix: Prefix | None = None,
        watch: Watch | None = None,
    ) -> tuple[Iterator[Any], list[Writing]]:
        """The steps that write behind the prompts, and what they write; `goes_on`: it reads on from the prompts."""
        text_options.check(options)
        if not prompts:
            return iter(()), []
        whole, healings = prompts, None
        if goes_on and options.get("heal"):
            healed = [healing.heal(ids, self._beginnings) for ids in whole]
            prompts, healings = [one.token_ids for one in healed], [one.healing for one in healed]
        rows = [
            self._row(ids, options, whole=all if goes_on else None) for ids, all in zip(prompts, whole, strict=True)
        ]
        count = options.get("logprobs")
        likely = None if count is None else LogprobRecorder(self._spelling, len(rows), top=count)
        writings = [
            Writing(row, ids, tools, None if likely is None else likely.rows[i], self._prompt_likely(ids, options))
            for i, (row, ids) in enumerate(zip(rows, prompts, strict=True))
        ]
        watches = [each for each in (likely, watch) if each is not None]
        rules = Constraints(healings) if healings is not None else self._constraints(options, len(rows))
        if self.draft is not None and not watches and prefix is None:
            return self._guessed(prompts, rows, options, rules), writings
        return self._steps(prompts, rows, options, prefix, watches, rules), writings

    def _steps(
        self,
        prompts: list[list[int]],
        rows: list[Row],
        options: TextOptions,
        prefix: Prefix | None,
        watches: Sequence[Watch],
        rules: Constraints | None,
    ) -> Iterator[Tensor]:
        """The steps that write the rows, token by token."""
        ids, mask = self._batch(prompts)
        history = History.begin(ids, mask)
        choose: Chooser = Sampler(self._settings(options), history, seed=options.get("seed"), constraints=rules)
        for watch in watches:
            choose = Watched(choose, watch)
        cache = None
        if prefix is not None:
            cache = prefix.take(prompts[0])
            ids = ids[:, cache.length :]
        feed = ModelRunner(self.model, ids, attention_mask=mask, past_key_values=cache)
        steps = tokens(feed, choose=choose, stop=Stop(rows), pad_token_id=self.tokenizer.pad_token_id or 0)
        return steps if prefix is None else prefix.follow(steps)

    def _guessed(
        self, prompts: list[list[int]], rows: list[Row], options: TextOptions, rules: Constraints | None
    ) -> Iterator[list[list[int]]]:
        """The steps that write the rows with the draft model guessing ahead."""
        assert self.draft is not None
        ids, mask = self._batch(prompts)
        settings = self._settings(options)
        seeded = generators(options.get("seed"), len(rows), ids.device)
        chain = LogitsProcessorList(settings, rows=len(rows), device=ids.device, generators=seeded)
        process = (chain or None) if rules is None else StatelessConstraint(rules, then=chain)
        greedy = greedy_rows(settings, len(rows))
        choice = TokenSelector(len(rows), process=process, greedy=greedy, generators=seeded, device=ids.device)
        self.acceptance = Acceptance()
        drafter, text, stop = DraftModelProposer(self.draft), RaggedBatch(ids, mask), Stop(rows)
        return verify.tokens(self.model, text, drafter, stop=stop, choice=choice, acceptance=self.acceptance)

    def _batch(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T) on the model's device."""
        ids, mask = _left_padded(prompts, self.tokenizer.pad_token_id or 0)
        return ids.to(self.model.device), mask.to(self.model.device)

    def _settings(self, options: TextOptions) -> SamplingParams:
        return text_options.settings(options, self.model.generation_config, self.tokenizer.eos_token_ids)

    def _constraints(self, options: TextOptions, rows: int) -> Constraints | None:
        """The form that the options ask of every row, or None."""
        form = text_options.form(options)
        if form is None:
            return None
        first = Constraint(form, self._vocabulary)
        return Constraints([first.fork() for _ in range(rows)])

    def _prompt_likely(self, prompt: list[int], options: TextOptions) -> list[TokenLogprob] | None:
        """How likely a prompt's tokens were, where the options ask for it."""
        count = options.get("prompt_logprobs")
        if count is None:
            return None
        ids = torch.tensor([prompt], device=self.model.device)
        found = prompt_logprobs(self.model, ids, top=count)
        return self._spelling.likely(ids[0, 1:], Logprobs(*(column[0] for column in found)))

    def _row(self, prompt: list[int], options: TextOptions, *, whole: list[int] | None) -> Row:
        """The row that is to follow a prompt; its text goes on from that of `whole`, or stands alone.

        What whole has behind the prompt is written again, and not shown.
        """
        room = self.context_length - len(prompt)
        most = options.get("max_tokens") or self.model.generation_config.get("max_new_tokens") or room
        after = () if whole is None else prompt
        return Row(
            min(most, room),
            eos_token_ids=self.tokenizer.eos_token_ids,
            strings=text_options.stops(options),
            tokenizer=self.tokenizer,
            after=after,
            again=whole[len(prompt) :] if whole is not None else (),
        )

    @cached_property
    def _vocabulary(self) -> grammar.Vocabulary:
        return grammar.Vocabulary(self.tokenizer)

    @cached_property
    def _spelling(self) -> TokenTexts:
        return TokenTexts(self.tokenizer)

    @cached_property
    def _beginnings(self) -> healing.Vocabulary:
        return healing.Vocabulary(self._spelling.pieces)


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    draft: str | Path | None = None,
    quantize: str | Mapping[str, str] | None = None,
    kernels: str = "auto",
    compile: str = "off",
    deterministic: bool = False,
) -> LLM:
    """A model ready to write: "cria" or None for the embedded one, a folder, a .gguf file, or a name on the hub.

    That is a repository's id, or one of its GGUF files by quantization or name: org/name:Q4_K_M, org/name:file.gguf.
    draft: a smaller model of the same tokens, named in the same way, which guesses ahead and changes no answer.
    quantize: "q8_0", "q4_k" or another recipe of `llamita.quant.recipes`, or one's own mapping of globs to formats.
    kernels: "auto" lets the CPU's kernels write wherever they know the model (`llamita.fused`), to the rounding of the
    last bits as the plain model would; "off" writes with the plain model.
    compile: "regional" or "full" lets torch compile the model, in place of our kernels (`llamita.parallel.compile`).
    deterministic: batch-invariant mode: a text never depends on what else is in the batch, to the last bit; slower.
    See `llamita.checkpoint.load.load_pretrained` for the options and errors.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device, "offline": offline}
    options["attn_implementation"] = attn_implementation
    if kernels not in ("auto", "off"):
        raise UsageError(f"kernels is {kernels!r}: say auto or off")
    loaded = load_pretrained(name, revision=revision, **options)
    if quantize is not None:
        from llamita.quant import surgery

        surgery.quantize(loaded.model, quantize)
    drafter = None if draft is None else load_pretrained(draft, **options).model
    for model in (loaded.model, drafter):
        if model is not None:
            _prepare(model, kernels=kernels, compile=compile, deterministic=deterministic)
    return LLM(loaded, drafter)


def _prepare(model: LlamaForCausalLM, *, kernels: str, compile: str, deterministic: bool) -> None:
    """Apply the plans asked for. Each is loaded only here: compilers take a while, and a plain model needs none."""
    if deterministic:
        from llamita.model.invariant import invariant

        invariant(model)
    if compile != "off":
        from llamita.parallel.compile import compile_model

        compile_model(model, compile)
    elif kernels == "auto" and model.device.type == "cpu":
        from llamita.fused import fuse, why_not

        if why_not(model) is None:
            fuse(model)


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
