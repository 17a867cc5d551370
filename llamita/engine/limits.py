"""How much an engine does at once, and how large its cache is."""

import os
from dataclasses import dataclass

import torch

from llamita import checks
from llamita.cache.paged import PagedCache
from llamita.errors import MemoryShortError, UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.model.plan import processes_of

SHARE = 0.4  # of the free memory, for the cache
LEAST = {
    "max_num_seqs": 1, "max_num_queued": 0, "max_num_batched_tokens": 1, "max_model_len": 1, "block_size": 1,
    "num_blocks": 1, "num_speculative_tokens": 0,
}  # fmt: skip
MAY_BE_NONE = ("max_model_len", "num_blocks", "num_speculative_tokens")


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """The limits of an engine, by vLLM's names.

    max_num_seqs: requests that run at once. max_num_queued: requests that may wait. max_num_batched_tokens: tokens of a
    step. max_model_len: tokens of a prompt and its answer, None for the model's. block_size: tokens of a block, a power
    of two. num_blocks: blocks of the cache; None is enough for all that run, in at most 40 % of the free memory.
    num_speculative_tokens: the most drafts of a request in a step, by a draft model or, without one, by its own text;
    None is 5 with a draft model and 0 without. Raises UsageError for limits that cannot be, or contradict each other.
    """

    max_num_seqs: int = 32
    max_num_queued: int = 256
    max_num_batched_tokens: int = 128
    max_model_len: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    enable_prefix_caching: bool = True
    num_speculative_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None or name not in MAY_BE_NONE:
                checks.whole(name, value, least=least)
        if self.block_size & (self.block_size - 1):
            raise UsageError(f"block_size is {self.block_size}: give a power of two, such as 16")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UsageError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, fewer than the {self.max_num_seqs} requests "
                "of a step: raise it, or lower max_num_seqs"
            )

    @property
    def max_num_requests(self) -> int:
        """Requests that run and wait; more are refused."""
        return self.max_num_seqs + self.max_num_queued


def blocks_of(model: LlamaForCausalLM, limits: EngineLimits) -> int:
    """How many blocks the cache of a model gets. Raises MemoryShortError where not even one fits."""
    if limits.num_blocks is not None:
        return limits.num_blocks
    longest = model.config.max_position_embeddings
    longest = longest if limits.max_model_len is None else min(longest, limits.max_model_len)
    wanted = limits.max_num_seqs * -(-longest // limits.block_size)
    each = PagedCache.block_bytes(model.cache_config, block_size=limits.block_size, dtype=model.dtype)
    sharing = processes_of(model) if model.device.type == "cpu" else 1  # of one memory, as far as is known
    fitting = int(SHARE * free_memory(model.device)) // (each * sharing)
    if not fitting:
        raise MemoryShortError(f"no block of {limits.block_size} tokens fits the free memory: close other programs")
    return min(wanted, fitting)


def pages_of(model: LlamaForCausalLM, num_blocks: int, block_size: int) -> PagedCache:
    """The cache of a model. Raises MemoryShortError where it does not fit."""
    try:
        return PagedCache(
            model.cache_config, num_blocks=num_blocks, block_size=block_size, dtype=model.dtype, device=model.device
        )
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise MemoryShortError(
            f"a cache of {num_blocks} blocks of {block_size} tokens does not fit the memory: give it fewer blocks"
        ) from error


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, or in this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
