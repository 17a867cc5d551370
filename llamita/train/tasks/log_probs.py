"""The log-probabilities of a batch's targets."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.data.documents import IGNORED
from llamita.data.loader import Batch
from llamita.model.llama import LlamaForCausalLM


def log_probs(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The log-probability of each target, 0 where nothing is learned: (B, T) in fp32, or fp64 for such a model."""
    hidden_states = model.model(
        batch.inputs, position_ids=batch.positions, use_cache=False, return_dict=True
    ).last_hidden_state
    is_learned = batch.targets != IGNORED
    logits = model.lm_head(hidden_states[is_learned])  # (n, V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found = -F.cross_entropy(logits, batch.targets[is_learned], reduction="none")
    return logits.new_zeros(batch.targets.shape).masked_scatter(is_learned, found)
