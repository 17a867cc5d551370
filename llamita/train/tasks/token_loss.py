"""The loss of the next token, summed over the learned tokens of a packed batch."""

from torch import Tensor

from llamita.config import LlamaConfig
from llamita.data.documents import IGNORED
from llamita.data.loader import Batch
from llamita.model.chunked_loss import chunked_cross_entropy
from llamita.model.llama import LlamaForCausalLM

LOGITS = 2**24  # in memory at once: 64 MiB in fp32
FEWEST = 512  # tokens at once: products of fewer are slow


def token_losses(model: LlamaForCausalLM, batch: Batch, *, z_loss: float = 0.0) -> Tensor:
    """The sum () of the cross-entropies of all learned tokens, in nats; documents do not see each other.

    z_loss: of `chunked_cross_entropy`, while the model is in training mode.
    """
    hidden_states = model.model(
        batch.inputs, position_ids=batch.positions, use_cache=False, return_dict=True
    ).last_hidden_state
    is_learned = batch.targets != IGNORED
    learned, targets = hidden_states[is_learned], batch.targets[is_learned]  # (n, D), (n,)
    z_loss = z_loss if model.training else 0.0
    return chunked_cross_entropy(
        learned, model.lm_head, targets, chunk=chunk_of(model.config), num_items=1, z_loss=z_loss
    )


def chunk_of(config: LlamaConfig) -> int:
    """How many tokens' logits are in memory at once."""
    return max(FEWEST, LOGITS // config.vocab_size // FEWEST * FEWEST)
