"""What a call of generate comes down to: a job for a strategy, and what the strategy wrote."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from torch import Generator, Tensor

from llamita.cache.cache import Cache
from llamita.cache.foreign import ForeignCache
from llamita.cache.offloaded import OffloadedCache
from llamita.cache.quantized import QuantizedCache
from llamita.cache.static import StaticCache
from llamita.errors import MemoryShortError, UnsupportedError, UsageError
from llamita.generation.decode import ModelRunner
from llamita.generation.hf_flags import QUANTIZED, GenerationFlags
from llamita.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, ScoreRecorder
from llamita.generation.sequence import Row
from llamita.generation.speculative.verify import Acceptance
from llamita.model.llama import LlamaForCausalLM
from llamita.model.pretrained import PreTrainedModel
from llamita.sampling.finite import finite
from llamita.sampling.history import History, LogitsProcessor
from llamita.sampling.params import SamplingParams
from llamita.sampling.processor_list import LogitsProcessorList
from llamita.structured.grammar import Constraints
from llamita.structured.stateless import StatelessConstraint
from llamita.tokenizer.protocol import Tokenizer

Criterion = Callable[[Tensor, Any], Any]  # (ids (B, T), scores) -> bool, or bool (B,), as transformers' criteria


@dataclass(kw_only=True)
class GenerationRequest:
    """A call of generate, made plain: what to continue, by which options, at most how far.

    input_ids (B, T), mask (B, cached + T), embeds (B, T, D), positions (B | 1, T).
    negative: ids and mask of the prompt to steer away from.
    rules: what each text must be (see `rules`). dropped: of each prompt the tokens that are to be written again.
    """

    model: PreTrainedModel
    options: GenerationFlags
    input_ids: Tensor
    mask: Tensor | None
    embeds: Tensor | None
    cache: Cache | None
    limit: int
    positions: Tensor | None = None
    logits_to_keep: int | Tensor = 1
    tokenizer: Tokenizer | None = None
    rules: Constraints | None = None
    dropped: Sequence[Sequence[int]] = ()
    criteria: Sequence[Criterion] = ()
    assistant: LlamaForCausalLM | None = None
    negative: tuple[Tensor | None, Tensor | None] = (None, None)
    on_step: Callable[[Tensor], None] = field(default=lambda step: None)
    started: float = field(default_factory=monotonic)

    @property
    def returned_ids(self) -> Tensor:
        """The prompts (B * returned, T), each as often as texts of it are returned."""
        return self.input_ids.repeat_interleave(self.options.num_return_sequences, 0)

    @property
    def history(self) -> History:
        """The prompts as the penalties see them."""
        return History.begin(self.input_ids, self.mask)

    @property
    def record(self) -> ScoreRecorder:
        """A new record of what the options ask to be kept of every step."""
        is_on = self.options.return_dict_in_generate
        return ScoreRecorder(scores=is_on and self.options.output_scores, logits=is_on and self.options.output_logits)

    def settings(self, rows: Sequence[int]) -> SamplingParams:
        """What shapes the distribution, for these rows of the batch."""
        settings = SamplingParams.of(self.options)
        embedded = 0 if self.embeds is None or self.input_ids.shape[1] else self.embeds.shape[1]
        least: Any = settings.min_length
        settings = replace(
            settings,
            max_length=self.input_ids.shape[1] + self.limit,
            min_length=max(least - embedded, 0) if isinstance(least, int) else least,
        )
        return settings if list(rows) == list(range(len(self.input_ids))) else settings.select(rows)

    def process(
        self, settings: SamplingParams, rows: int, generators: Sequence[Generator] | None = None
    ) -> LogitsProcessor | None:
        """The rules, then the chain of the settings, as a function, which mirostat is not; None where nothing is on."""
        chain = LogitsProcessorList(settings, rows=rows, device=self.input_ids.device, generators=generators)
        if chain.is_adaptive:
            raise UnsupportedError(
                "mirostat goes by what was drawn, one token at a time: leave beams and assistants out"
            )
        if self.rules is not None:
            return StatelessConstraint(self.rules, then=chain)
        return chain if chain else None

    def feed(self, kind: type[ModelRunner] = ModelRunner) -> ModelRunner:
        """The model, about to read the prompts."""
        cache = self.cache if self.cache is not None else self.new_cache()
        return kind(
            self.model,
            unread(self.input_ids, self.mask, self.cache) if self.embeds is None else self.input_ids,
            inputs_embeds=None if self.embeds is None else unread(self.embeds, self.mask, self.cache),
            attention_mask=self.mask,
            past_key_values=cache,
            use_cache=self.options.use_cache,
            chunk=self.options.prefill_chunk_size,
            kept=self.options.kept,
            position_ids=self.positions,
            logits_to_keep=self.logits_to_keep,
            check=(lambda logits: logits) if self.options.remove_invalid_values else finite,
        )

    def new_cache(self) -> Cache | None:
        """An empty cache of the kind that the options name, or None for the model's own choice."""
        name, model = self.options.cache_implementation, self.model
        if name == "static":
            batch = len(self.input_ids)  # of the expanded job where texts multiply before they are read
            room = max(self.input_ids.shape[1], 0 if self.embeds is None else self.embeds.shape[1]) + self.limit
            try:
                return StaticCache(model.config, batch=batch, capacity=room, dtype=model.dtype, device=model.device)
            except (RuntimeError, OverflowError, TypeError, ValueError) as error:
                raise MemoryShortError(
                    f"a static cache of {room} tokens does not fit the memory: give fewer max_new_tokens"
                ) from error
        if name == "quantized":
            given = self.options.cache_config or {}
            return QuantizedCache(
                **{known: given[each] for each, known in QUANTIZED.items() if known and each in given}
            )
        return OffloadedCache() if name == "offloaded" else None

    def rows(self) -> list[Row]:
        """A row for each text to be written."""
        eos, strings = self.options.eos_token_ids, self.options.stops
        tokenizer = self.tokenizer if strings else None
        again = self.dropped or [()] * len(self.input_ids)
        return [Row(self.limit, eos_token_ids=eos, strings=strings, tokenizer=tokenizer, again=ids) for ids in again]

    def expanded(self) -> tuple["GenerationRequest", SamplingParams]:
        """The same with a row for each text that is returned, and the settings of these rows."""
        times = self.options.num_return_sequences
        origins = [row for row in range(len(self.input_ids)) for _ in range(times)]
        return self.repeated(times), self.settings(origins)

    def repeated(self, times: int) -> "GenerationRequest":
        """The same with every prompt so many times, its copies side by side."""
        if times == 1:
            return self

        def repeat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat_interleave(times, 0)

        if self.cache is not None:
            self.cache.repeat(times)
        ids = repeat(self.input_ids)
        assert ids is not None
        origins = [row for row in range(len(self.input_ids)) for _ in range(times)]
        rules = None if self.rules is None else self.rules.forked(origins)
        dropped = [self.dropped[row] for row in origins] if self.dropped else ()
        negative = tuple(x if x is None or len(x) != len(self.input_ids) else repeat(x) for x in self.negative)
        return replace(
            self,
            input_ids=ids,
            mask=repeat(self.mask),
            embeds=repeat(self.embeds),
            positions=self.positions if self.positions is None or len(self.positions) == 1 else repeat(self.positions),
            rules=rules,
            dropped=dropped,
            negative=(negative[0], negative[1]),
        )

    @property
    def is_late(self) -> bool:
        """Whether `max_time` is over."""
        return self.options.max_time is not None and monotonic() - self.started > self.options.max_time


@dataclass(kw_only=True)
class GenerationResult:
    """What a strategy wrote: tokens (B * returned, new), and what was kept beside them."""

    tokens: Tensor
    record: ScoreRecorder = field(default_factory=ScoreRecorder)
    feed: ModelRunner | None = None
    beams: tuple[Tensor, Tensor] | None = None  # beam_indices and sequences_scores
    acceptance: Acceptance | None = None

    def output(self, sequences: Tensor) -> GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
        """transformers' record of these sequences (B * returned, T + new)."""
        kept: dict[str, Any] = {} if self.feed is None else {k: tuple(steps) for k, steps in self.feed.kept.items()}
        cache = None if self.feed is None else self.feed.cache
        cache = cache.inner if isinstance(cache, ForeignCache) else cache
        common: dict[str, Any] = {"scores": self.record.scores, "logits": self.record.logits, "past_key_values": cache}
        if self.beams is None:
            return GenerateDecoderOnlyOutput(sequences, **common, **kept, acceptance=self.acceptance)
        indices, ranking = self.beams
        ranking = None if self.record.scores is None else ranking
        return GenerateBeamDecoderOnlyOutput(
            sequences, sequences_scores=ranking, beam_indices=indices, **common, **kept
        )


def unread(inputs: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
    """What the cache does not hold of ids (B, T) or embeddings (B, T, D)."""
    if cache is None or (attention_mask is not None and attention_mask.shape[1] != inputs.shape[1]):
        return inputs
    if cache.length >= inputs.shape[1]:
        raise UsageError(
            f"the cache already holds {cache.length} tokens and the input has {inputs.shape[1]}: crop the cache to "
            "leave at least one to read"
        )
    return inputs[:, cache.length :]
