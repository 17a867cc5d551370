"""The request: what to generate, and how. `LLM` and `model.generate` translate their arguments into one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.cache.offloaded import OffloadedCache
from llamita.cache.quantized import QuantizedCache
from llamita.cache.static import StaticCache
from llamita.errors import MemoryShortError, UnsupportedError, UsageError
from llamita.generation.outputs import ScoreRecorder
from llamita.generation.prefix_cache import Prefix
from llamita.generation.protocol import LanguageModel
from llamita.generation.runner import ModelRunner, finite
from llamita.generation.sequence import NOTHING_ELSE, Ending
from llamita.generation.sequence import Sequence as TextSequence
from llamita.generation.settings import QUANTIZED, GenerationSettings
from llamita.sampling.history import History, LogitsProcessor
from llamita.sampling.params import SamplingParams
from llamita.sampling.sampler import LogitsProcessorList, Observer, generators
from llamita.structured.grammar import Constraints
from llamita.structured.stateless import StatelessConstraint
from llamita.structured.token_tables import TokenTables

Criterion = Callable[[Tensor, Any], Any]  # (ids (B, T), scores) -> which rows are over: (B,), or one for all


@dataclass(kw_only=True)
class GenerationRequest:
    """Prompts, settings and limits of one generation.

    input_ids: (B, T); mask: (B, cached + T), None if all rows have the same length; embeds: (B, T, D) instead of ids;
    positions: (B | 1, T), None to count by the mask. logits_to_keep: forward's, of every pass.
    limit: the most new tokens of a row, from the length of its prompt and the columns T of the batch.
    prompts: the rows as lists, if their text is wanted; reads_on: the text continues the prompt's.
    ending: what ends a text besides the settings. prompt_logprobs: how many alternatives to note with those of prompts.
    tables: tables of the tokenizer's tokens. constraints, dropped: see `plan.constrained`.
    negative: ids and mask of the negative prompt. prefix: the prefix cache, for one row.
    repeats_hf_draws: one drawn, unseeded text with drafts uses random numbers as transformers does.
    is_private: whoever asks lets nobody else run between two steps.
    """

    model: LanguageModel
    settings: GenerationSettings
    input_ids: Tensor
    limit: Callable[[int, int], int]
    mask: Tensor | None = None
    embeds: Tensor | None = None
    cache: Cache | None = None
    positions: Tensor | None = None
    logits_to_keep: int | Tensor = 1
    prompts: list[list[int]] | None = None
    reads_on: bool = False
    ending: Ending = NOTHING_ELSE
    prompt_logprobs: int | None = None
    tables: TokenTables | None = None
    constraints: Constraints | None = None
    dropped: Sequence[Sequence[int]] = ()
    criteria: Sequence[Criterion] = ()
    assistant: LanguageModel | None = None
    negative: tuple[Tensor | None, Tensor | None] = (None, None)
    prefix: Prefix | None = None
    observers: tuple[Observer, ...] = ()
    on_step: Callable[[Tensor], None] = field(default=lambda step: None)
    repeats_hf_draws: bool = False
    is_private: bool = False
    started: float = field(default_factory=monotonic)

    @property
    def returned_ids(self) -> Tensor:
        """The prompts (B * returned, T), each repeated once per returned text."""
        return self.input_ids.repeat_interleave(self.settings.num_return_sequences, 0)

    @property
    def history(self) -> History:
        """The prompts as penalties read them."""
        if self.mask is None:
            return History(self.input_ids, self.input_ids.shape[1])
        return History.begin(self.input_ids, self.mask)

    @property
    def limits(self) -> list[int]:
        """The most new tokens of each row."""
        rows, columns = self.input_ids.shape
        lengths = [columns] * rows if self.prompts is None else map(len, self.prompts)
        return [self.limit(length, columns) for length in lengths]

    @property
    def ending_ids(self) -> list[int]:
        """All tokens that end a text."""
        return [*self.settings.eos_token_ids, *self.ending.token_ids]

    @property
    def score_recorder(self) -> ScoreRecorder | None:
        """A new recorder of scores and logits, if the settings ask for them."""
        scores, logits = self.settings.output_scores, self.settings.output_logits
        is_on = self.settings.return_dict_in_generate and (scores or logits)
        return ScoreRecorder(scores=scores, logits=logits) if is_on else None

    @property
    def is_late(self) -> bool:
        """Whether `max_time` is over."""
        return self.settings.max_time is not None and monotonic() - self.started > self.settings.max_time

    def params(self, rows: Sequence[int]) -> SamplingParams:
        """The sampling parameters of these rows of the batch."""
        embedded = 0 if self.embeds is None or self.input_ids.shape[1] else self.embeds.shape[1]
        least: Any = self.settings.min_length
        stops = {"eos_token_id": self.ending_ids} if self.ending.token_ids else {}
        params = SamplingParams.of(
            self.settings,
            **stops,
            max_length=self.input_ids.shape[1] + max(self.limits),
            min_length=max(least - embedded, 0) if isinstance(least, int) else least,
        )
        params.check_rows(len(self.input_ids))
        return params if list(rows) == list(range(len(self.input_ids))) else params.select(rows)

    def processor(
        self, params: SamplingParams, rows: int, generators: Sequence[torch.Generator] | None = None
    ) -> LogitsProcessor | None:
        """The constraints, then the logits processors, as a function of the history; None if there are none.

        Raises UnsupportedError for mirostat, which is no such function.
        """
        processors = LogitsProcessorList(params, rows=rows, device=self.input_ids.device, generators=generators)
        if processors.is_adaptive:
            raise UnsupportedError(
                "mirostat goes by what was drawn, one token at a time: leave beams and assistants out"
            )
        if self.constraints is not None:
            return StatelessConstraint(self.constraints, then=processors)
        return processors if processors else None

    def runner(self, kind: type[ModelRunner] = ModelRunner) -> ModelRunner:
        """A runner of the model over the part of the prompts that the cache lacks."""
        given = self.cache if self.prefix is None or self.prompts is None else self.prefix.take(self.prompts[0])
        return kind(
            self.model,
            unread(self.input_ids, self.mask, given) if self.embeds is None else self.input_ids,
            inputs_embeds=None if self.embeds is None else unread(self.embeds, self.mask, given),
            attention_mask=self.mask,
            past_key_values=self.new_cache() if given is None else given,
            use_cache=self.settings.use_cache,
            chunk=self.settings.prefill_chunk_size,
            recorded=self.settings.recorded_outputs,
            position_ids=self.positions,
            logits_to_keep=self.logits_to_keep,
            run=object() if self.is_private and not self._has_functions else None,
            check=(lambda logits: logits) if self.settings.remove_invalid_values else finite,
        )

    @property
    def _has_functions(self) -> bool:
        """Whether functions of the user run between two steps, which might change the model."""
        settings = self.settings
        functions = self.observers, self.criteria, settings.logits_processor, settings.prefix_allowed_tokens_fn
        return any(map(bool, functions))

    def new_cache(self) -> Cache | None:
        """An empty cache of the kind that the settings name, or None for the model's own choice.

        Raises MemoryShortError for a static cache that does not fit.
        """
        name, model = self.settings.cache_implementation, self.model
        if name == "static":
            batch = len(self.input_ids)  # of the expanded request where texts multiply before they are read
            columns = max(self.input_ids.shape[1], 0 if self.embeds is None else self.embeds.shape[1])
            capacity = columns + max(self.limits)
            try:
                return StaticCache(
                    model.cache_config, batch=batch, capacity=capacity, dtype=model.dtype, device=model.device
                )
            except (RuntimeError, OverflowError, TypeError, ValueError) as error:
                raise MemoryShortError(
                    f"a static cache of {capacity} tokens does not fit the memory: give fewer max_new_tokens"
                ) from error
        if name == "quantized":
            given = self.settings.cache_config or {}
            return QuantizedCache(
                **{known: given[each] for each, known in QUANTIZED.items() if known and each in given}
            )
        return OffloadedCache() if name == "offloaded" else None

    def sequences(self) -> list[TextSequence]:
        """A sequence for each row, with its random generator and its constraint."""
        settings, rows = self.settings, len(self.input_ids)
        strings, tables = settings.stops, self.tables
        prompts = self.prompts or [[]] * rows
        dropped = self.dropped or [()] * rows
        seeded = generators(settings.seed, rows, self.input_ids.device) or [None] * rows
        constraints = [None] * rows if self.constraints is None else self.constraints.rows
        return [
            TextSequence(
                limit,
                eos_token_ids=settings.eos_token_ids,
                strings=strings,
                ending=self.ending,
                tokenizer=tables.tokenizer if tables and (strings or self.prompts is not None) else None,
                after=prompt if self.reads_on else (),
                again=again,
                prompt_token_ids=prompt,
                generator=generator,
                constraint=constraint,
            )
            for limit, prompt, again, generator, constraint in zip(
                self.limits, prompts, dropped, seeded, constraints, strict=True
            )
        ]

    def expanded(self) -> tuple["GenerationRequest", SamplingParams]:
        """The request with a row for each returned text, and the sampling parameters of these rows."""
        times = self.settings.num_return_sequences
        origins = [row for row in range(len(self.input_ids)) for _ in range(times)]
        return self.repeated(times), self.params(origins)

    def repeated(self, times: int) -> "GenerationRequest":
        """The request with every prompt repeated; copies of a prompt are neighbours."""
        if times == 1:
            return self

        def repeat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat_interleave(times, 0)

        if self.cache is not None:
            self.cache.repeat(times)
        ids = repeat(self.input_ids)
        assert ids is not None
        origins = [row for row in range(len(self.input_ids)) for _ in range(times)]
        negative = tuple(x if x is None or len(x) != len(self.input_ids) else repeat(x) for x in self.negative)
        return replace(
            self,
            input_ids=ids,
            mask=repeat(self.mask),
            embeds=repeat(self.embeds),
            positions=self.positions if self.positions is None or len(self.positions) == 1 else repeat(self.positions),
            prompts=None if self.prompts is None else [self.prompts[row] for row in origins],
            constraints=None if self.constraints is None else self.constraints.forked(origins),
            dropped=[self.dropped[row] for row in origins] if self.dropped else (),
            negative=(negative[0], negative[1]),
        )

    def are_over(self, ids: Tensor, recorder: ScoreRecorder | None) -> Tensor:
        """Which texts (R, T) are over by max_time or a criterion of the user: bool (R,)."""
        over = torch.full((len(ids),), self.is_late, device=ids.device)
        for criterion in self.criteria:
            scores = None if recorder is None else recorder.scores
            over = over | torch.as_tensor(criterion(ids, scores), device=ids.device).bool()
        return over


def left_padded(
    rows: Sequence[Sequence[int]], fill: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T) of prompts, padded on the left; and a mask if their lengths differ, else None."""
    longest = max(map(len, rows))
    ids = _tensor([[fill] * (longest - len(row)) + list(row) for row in rows], device)
    if all(len(row) == longest for row in rows):
        return ids, None
    return ids, _tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device)


def _tensor(rows: list[list[int]], device: torch.device | str) -> Tensor:
    """Rows of whole numbers as int64, from NumPy, as torch reads lists of numbers several times more slowly."""
    return torch.from_numpy(np.array(rows, dtype=np.int64)).to(device)


def unread(inputs: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
    """The part of ids (B, T) or embeddings (B, T, D) that the cache lacks; UsageError where that is nothing."""
    if cache is None or (attention_mask is not None and attention_mask.shape[1] != inputs.shape[1]):
        return inputs
    if cache.length >= inputs.shape[1]:
        raise UsageError(
            f"the cache already holds {cache.length} tokens and the input has {inputs.shape[1]}: crop the cache to "
            "leave at least one to read"
        )
    return inputs[:, cache.length :]
