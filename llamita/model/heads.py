"""Heads that are no language model: classes, answers, rewards and embeddings from the last hidden states."""

from collections.abc import Callable
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.cache.cache import Cache
from llamita.config import LlamaConfig
from llamita.context.protocol import Context
from llamita.errors import UsageError
from llamita.model import loss as losses
from llamita.model.llama import Layers, LlamaModel
from llamita.model.outputs import (
    EmbeddingOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from llamita.model.pretrained import LlamaPreTrainedModel


class Options(TypedDict, total=False):
    """The rarer arguments of `LlamaModel.forward`, which every head hands on as they are."""

    use_cache: bool | None
    output_attentions: Layers
    output_hidden_states: Layers
    context: Context | None
    cache_position: Tensor | None
    token_type_ids: Tensor | None


class LlamaHead(LlamaPreTrainedModel):
    """The base of the heads: a LlamaModel under the name that checkpoints give it."""

    accepts_loss_kwargs = False

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.num_labels = len(config.id2label)
        setattr(self, self.base_model_prefix, LlamaModel(config))


class LlamaForSequenceClassification(LlamaHead):
    """One row of logits a sequence, read at its last real token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Unpack[Options],
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, labels) at the right-most token that is not `pad_token_id`, and with labels the loss.

        With inputs_embeds only the attention mask shows padding; without one the last token is read.
        Raises ValueError for several sequences and no pad_token_id: their ends would be unknown.
        """
        outputs = self.base_model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, return_dict=True, **options
        )
        # Scored before pooled, as in transformers: one row alone would be another matrix product, rounded otherwise.
        logits = self.score(outputs.last_hidden_state)  # (B, T, labels)
        last = self.last_tokens(input_ids, attention_mask, logits)
        pooled = logits[torch.arange(logits.shape[0], device=logits.device), last]  # (B, labels)
        loss = None if labels is None else losses.classification(pooled, labels, self.config.problem_type)
        return self.finish(
            SequenceClassifierOutputWithPast(
                loss=loss,
                logits=pooled,
                past_key_values=outputs.past_key_values,
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            ),
            return_dict,
        )

    def last_tokens(self, input_ids: Tensor | None, attention_mask: Tensor | None, logits: Tensor) -> Tensor | int:
        """Where each sequence ends: (B,), or one place for all; ValueError for several without a pad_token_id."""
        pad = self.config.pad_token_id
        if pad is None and logits.shape[0] != 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        if pad is not None and input_ids is not None:
            return right_most((input_ids != pad).to(logits.device))
        shown = shown_by(attention_mask, logits)
        return -1 if pad is None or shown is None else right_most(shown)


class LlamaForReward(LlamaForSequenceClassification):
    """A scalar a sequence, trained on pairs of a chosen and a rejected one (arXiv:2203.02155).

    The same weights as a sequence classifier of one label, so such checkpoints load. With an attention mask the end
    of a sequence is its last unmasked token: chat models often pad with the very token that ends a reply.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config if len(config.id2label) == 1 else config.replace(num_labels=1))

    def last_tokens(self, input_ids: Tensor | None, attention_mask: Tensor | None, logits: Tensor) -> Tensor | int:
        """Where each sequence ends: (B,), or one place for all."""
        shown = shown_by(attention_mask, logits)
        return super().last_tokens(input_ids, attention_mask, logits) if shown is None else right_most(shown)

    def loss(
        self,
        chosen: Tensor,
        rejected: Tensor,
        *,
        chosen_mask: Tensor | None = None,
        rejected_mask: Tensor | None = None,
        margin: Tensor | float = 0.0,
    ) -> Tensor:
        """-log sigmoid(reward of chosen - reward of rejected - margin), the mean over pairs of token ids (B, T)."""
        pairs = ((chosen, chosen_mask), (rejected, rejected_mask))
        rewards = [self(ids, attention_mask=mask, use_cache=False, return_dict=True).logits for ids, mask in pairs]
        return losses.preference(*rewards, margin=margin)


class LlamaForTokenClassification(LlamaHead):
    """One row of logits a token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        given = (config.extra.get(name) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in given if rate is not None), 0.1))
        self.score = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Unpack[Options],
    ) -> TokenClassifierOutput:
        """Logits (B, T, labels), and with labels (B, T), -100 where there is none, the loss in fp32."""
        outputs = self.base_model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, return_dict=True, **options
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else losses.cross_entropy(logits.float(), labels)
        return self.finish(
            TokenClassifierOutput(
                loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
            ),
            return_dict,
        )


class LlamaForQuestionAnswering(LlamaHead):
    """Where in the text an answer begins and ends."""

    base_model_prefix = "transformer"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Unpack[Options],
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits (B, T), and with both positions (B,) the mean of the two losses."""
        outputs = self.base_model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, return_dict=True, **options
        )
        start_logits, end_logits = (x.contiguous() for x in self.qa_outputs(outputs.last_hidden_state).unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = losses.span(start_logits, end_logits, start_positions, end_positions)
        return self.finish(
            QuestionAnsweringModelOutput(
                loss=loss,
                start_logits=start_logits,
                end_logits=end_logits,
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            ),
            return_dict,
        )


class LlamaForEmbedding(LlamaHead):
    """One vector a sequence. It has no weights of its own: every checkpoint of a base or language model loads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pooling: str = "mean",
        normalize: bool = True,
        return_dict: bool | None = None,
        **options: Unpack[Options],
    ) -> EmbeddingOutput:
        """Embeddings (B, D) of the tokens that the attention mask (B, T) shows, of unit length if `normalize`.

        pooling: "mean", "last" or "first" of them; UsageError for another. Sums run in fp32.
        """
        if pooling not in POOLING:
            raise UsageError(f"pooling {pooling!r} is unknown: use one of {', '.join(POOLING)}")
        hidden_states = self.base_model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, return_dict=True, **options
        ).last_hidden_state
        real = shown_by(attention_mask, hidden_states)
        if real is None:
            real = torch.ones(hidden_states.shape[:2], device=hidden_states.device, dtype=torch.bool)
        pooled = POOLING[pooling](hidden_states, real)  # (B, D)
        if normalize:
            pooled = F.normalize(pooled.float(), dim=-1).to(pooled.dtype)
        return self.finish(EmbeddingOutput(embeddings=pooled, last_hidden_state=hidden_states), return_dict)


def shown_by(attention_mask: Tensor | None, hidden_states: Tensor) -> Tensor | None:
    """Which tokens of this pass a 2-D mask shows, bool (B, T); None without such a mask."""
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    return attention_mask[:, -hidden_states.shape[1] :].bool().to(hidden_states.device)


def right_most(real: Tensor) -> Tensor:
    """The last True of each row of a bool (B, T), 0 where there is none: (B,)."""
    return (torch.arange(real.shape[1], device=real.device) * real).argmax(-1)


def mean_of(hidden_states: Tensor, real: Tensor) -> Tensor:
    """The mean over the real tokens, summed in fp32: (B, T, D) and bool (B, T) -> (B, D)."""
    shown = torch.where(real[..., None], hidden_states.float(), 0.0)  # a product would let NaN in padding through
    return (shown.sum(1) / real.sum(1, keepdim=True).clamp(min=1)).to(hidden_states.dtype)


def last_of(hidden_states: Tensor, real: Tensor) -> Tensor:
    """The last real token: (B, T, D) and bool (B, T) -> (B, D)."""
    return hidden_states[torch.arange(real.shape[0], device=real.device), right_most(real)]


def first_of(hidden_states: Tensor, real: Tensor) -> Tensor:
    """The first real token: (B, T, D) and bool (B, T) -> (B, D)."""
    return hidden_states[torch.arange(real.shape[0], device=real.device), real.int().argmax(-1)]


POOLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_of, "last": last_of, "first": first_of}
