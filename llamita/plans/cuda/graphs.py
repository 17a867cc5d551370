"""A decode step as one CUDA graph: recorded once, then replayed without Python between its kernels."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from llamita.cache.static import StaticCache
from llamita.errors import UnsupportedError, UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.model.plan import check

Step = Callable[[Tensor], Tensor]  # tokens (B, T) -> logits (B, V) of the last of each row; the cache moves on by T

WARM_UPS = 2  # passes before recording, in which libraries choose kernels and allocate what they keep
CAPTURABLE = ("eager", "sdpa")  # the others read lengths on the host, which no graph may


class Recorder(Protocol):
    """Records the kernels of a call, and replays them on the same memory."""

    def warm_up(self, call: Callable[[], object]) -> None:
        """Run a call without recording it."""
        ...

    def record(self, call: Callable[[], Tensor]) -> Tensor:
        """Record a call without running it; returns the tensor of its result."""
        ...

    def replay(self) -> None:
        """Run the recorded call."""
        ...


class CudaRecorder:
    """A CUDA graph."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, call: Callable[[], object]) -> None:
        """Run a call on another stream than the current one, as recording requires."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, call: Callable[[], Tensor]) -> Tensor:
        """Record a call; raises UnsupportedError for one that waits for the device or moves data to it."""
        try:
            with torch.cuda.graph(self._graph):
                return call()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UnsupportedError(f"this step cannot be a CUDA graph ({reason}): run it without one") from error

    def replay(self) -> None:
        """Start the graph."""
        self._graph.replay()


class PlainStep:
    """The model's own forward over a StaticCache, in the form that a graph replays.

    padding: (B, capacity) bool, True for real tokens and for all slots to come; None where no row is padded.
    Raises UsageError for an attention backend that no graph can hold, and for padding of another length.
    """

    def __init__(self, model: LlamaForCausalLM, cache: StaticCache, *, padding: Tensor | None = None) -> None:
        check(model, "graphs")
        name = model.config.attn_implementation
        if name not in CAPTURABLE:
            raise UsageError(f'attn_implementation="{name}" reads lengths on the host: use sdpa for a CUDA graph')
        if padding is not None and padding.shape[1] != cache.capacity:
            raise UsageError(
                f"padding covers {padding.shape[1]} slots, the cache has {cache.capacity}: fill it up with True"
            )
        self._model = model
        self._cache = cache
        self._padding = padding

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> logits (B, V) of the last."""
        outputs = self._model(tokens, self._padding, past_key_values=self._cache, logits_to_keep=1)
        return outputs.logits[:, -1]


class DecodeGraph:
    """A step that is recorded at its first call and replayed at those after it.

    It is recorded again when the shape of the tokens changes, or when the cache's tensors are others (`select`,
    `repeat`). The cache may be filled, cropped and reordered in place between calls. The weights may change in place.
    """

    def __init__(self, step: Step, cache: StaticCache, *, recorder: Callable[[], Recorder] = CudaRecorder) -> None:
        self._step = step
        self._cache = cache
        self._new_recorder = recorder
        self._recorder: Recorder | None = None
        self._recorded: tuple[object, ...] = ()
        self._tokens = torch.empty(0, dtype=torch.long)
        self._logits = torch.empty(0)
        self._length = 0
        self._version = -1

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> logits (B, V), which the next call overwrites. Raises UsageError when the cache is full."""
        self._check_capacity(tokens.shape[1])
        if self._recorder is None or self._state(tokens) != self._recorded:
            self._record(tokens)
        assert self._recorder is not None
        self._tokens.copy_(tokens)
        self._recorder.replay()
        self._length += tokens.shape[1]
        return self._logits

    def _state(self, tokens: Tensor) -> tuple[object, ...]:
        """The shapes and addresses that a recording depends on."""
        buffers = (*self._cache.keys, *self._cache.values)
        return tuple(tokens.shape), *(buffer.data_ptr() for buffer in buffers)

    def _check_capacity(self, tokens: int) -> None:
        """Check that the tokens fit, by a count on the host: to read it from the device would stall every step."""
        capacity = self._cache.capacity
        # The version changes when anything but a replay writes, such as a prefill. A crop writes no keys and leaves
        # the count too high, so the length is read from the device before an error is raised.
        version = self._cache.keys[0]._version
        if version != self._version or self._length + tokens > capacity:
            self._length, self._version = self._cache.length, version
        if self._length + tokens > capacity:
            raise UsageError(
                f"{self._length} cached and {tokens} new tokens do not fit a StaticCache of {capacity}: make it larger"
            )

    def _record(self, tokens: Tensor) -> None:
        self._recorder = None  # frees the old recording's memory before the new one's is allocated
        recorder = self._new_recorder()
        self._tokens = tokens.clone()
        length = self._length

        def passing() -> Tensor:
            return self._step(self._tokens)

        def warming() -> None:
            passing()
            self._cache.crop(length)

        for _ in range(WARM_UPS):
            recorder.warm_up(warming)
        self._logits = recorder.record(passing)
        self._recorder, self._recorded = recorder, self._state(tokens)
        self._version = self._cache.keys[0]._version
