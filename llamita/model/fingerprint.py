"""A short name for what a model computes, cheap enough to take before every use of a file that depends on it."""

import hashlib
import json

import torch

from llamita.model.pretrained import PreTrainedModel

SAMPLE = 64  # numbers taken of each weight, evenly


def fingerprint(model: PreTrainedModel) -> str:
    """64 hex digits from the config and a sample of every weight: other weights, adapters or dtypes give others.

    A change to a few numbers of a weight may go unseen: it tells models apart, it does not certify them.
    """
    facts = {name: value for name, value in model.config.to_dict().items() if name not in model.config.extra}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLE)
        digest.update(flat[::step][:SAMPLE].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
