"""The loss of the next token, summed over the learned tokens of a packed batch."""

from torch import Tensor

from llamita.data.documents import IGNORED
from llamita.data.loader import Batch
from llamita.model import loss as losses
from llamita.model.layers import at_least_fp32
from llamita.model.llama import LlamaForCausalLM

CHUNK = 4096  # tokens whose logits are in memory at once


def token_losses(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The sum () of the cross-entropies of all learned tokens, in nats; documents do not see each other."""
    hidden_states = model.model(
        batch.inputs, position_ids=batch.positions, use_cache=False, return_dict=True
    ).last_hidden_state
    is_learned = batch.targets != IGNORED
    learned, targets = hidden_states[is_learned], batch.targets[is_learned]  # (n, D), (n,)
    if len(targets) > CHUNK:
        return losses.chunked_cross_entropy(learned, model.lm_head, targets, chunk=CHUNK, num_items=1)
    return losses.cross_entropy(at_least_fp32(model.lm_head(learned)), targets, num_items=1)
