"""Speculative decoding in the engine: drafts of the next tokens of a text, from the text itself or by a draft model.

A draft changes no answer: the request's own sampler chooses after each token as always, and goes on in the same step as
long as the next token is the draft, whose keys and values are there already.
"""

from collections.abc import Sequence

import torch

from llamita.cache.growing import GrowingCache
from llamita.engine.scheduler import Scheduled
from llamita.errors import UsageError
from llamita.generation.common_prefix import common_prefix
from llamita.generation.protocol import LanguageModel
from llamita.generation.speculative.proposers import follow
from llamita.generation.speculative.verify import draft_limit, has_kernels

NGRAM = 2  # last tokens that are looked for earlier in the text


class DraftText:
    """A draft model and what it has read of one text."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._cache = model, GrowingCache()
        self._read: list[int] = []

    def propose(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that the draft model would write; none where its context ends before."""
        if len(token_ids) + count > self._model.config.max_position_embeddings:
            return []
        self._cache.crop(min(common_prefix(self._read, token_ids), len(token_ids) - 1))
        new, drafts = list(token_ids[self._cache.length :]), list[int]()
        for _ in range(count):
            ids = torch.tensor([new], device=self._model.device)
            output = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1, return_dict=True)
            new = [int(output.logits[0, -1].argmax())]
            drafts += new
        self._read = [*token_ids, *drafts[:-1]]
        return drafts


class Proposer:
    """Proposes the next tokens of one text, fewer after wrong ones.

    draft_model: None looks for the last tokens earlier in the text. most: drafts of a step.
    """

    def __init__(self, draft_model: LanguageModel | None, most: int) -> None:
        self._draft = None if draft_model is None else DraftText(draft_model)
        self._most = self._worth = most

    def propose(self, token_ids: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may come next."""
        count = min(most, self._worth, self._most)
        if count < 1:
            return []
        if self._draft is not None:
            return self._draft.propose(token_ids, count)
        return follow(torch.tensor(token_ids, device="cpu"), count, ngram=NGRAM).tolist()

    def learn(self, drafted: int, accepted: int) -> None:
        """Draft one more than were accepted the next time, or twice as many if all were."""
        self._worth = accepted + 1 if accepted < drafted else max(self._worth, 2 * accepted)


def check_draft(model: LanguageModel, draft: LanguageModel | None) -> None:
    """Raise UsageError for a draft model with other tokens."""
    if draft is not None and draft.config.vocab_size != model.config.vocab_size:
        raise UsageError(
            f"the draft model has {draft.config.vocab_size} tokens and the model {model.config.vocab_size}: use one "
            "with the same tokenizer"
        )


def most_in_step(model: LanguageModel, parts: Sequence[Scheduled]) -> int:
    """How many drafts each request of a step may have, by the rule of `generation.speculative`.

    None where a prompt is read, as each draft would cost what a token of it costs; nor without the CPU's kernels, as
    then more rows may change the last bits of an answer.
    """
    if not parts or not has_kernels(model) or any(part.num_tokens > 1 for part in parts):
        return 0
    return draft_limit(model, len(parts))
