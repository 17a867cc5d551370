"""Models run by the CPU's kernels write what transformers writes, greedily and in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse

CHANGES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "biases and tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("flags", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_kernels_write_what_transformers_writes(name: str, flags: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=88, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=3, max_position_embeddings=128, initializer_range=0.2, bos_token_id=1, eos_token_id=None,
        pad_token_id=0, **CHANGES[name],
    )  # fmt: skip
    theirs: Any = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = fuse(LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    for batch, tokens in ((1, 1), (1, 20), (2, 9))[: 2 if "prompt_lookup_num_tokens" in flags else 3]:
        ids = torch.randint(1, 97, (batch, tokens))
        common = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids), **flags}
        assert torch.equal(ours.generate(ids, **common), theirs.generate(ids, **common))
