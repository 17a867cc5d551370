"""How many bytes of tensors are alive, and the most that ever were: counted exactly, as each is made and freed."""

import weakref
from typing import Any

from torch import Tensor, UntypedStorage
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveTensors(TorchDispatchMode):
    """Counts what operations make while it is on, real tensors or fake ones; views count once.

    now, peak: bytes; of a DTensor those of this process's part. What is made outside of torch's operations, as inside
    an optimizer's fused kernel, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: weakref.WeakKeyDictionary[UntypedStorage, list[int]] = weakref.WeakKeyDictionary()
        self._resize: Any = None

    def __enter__(self) -> "LiveTensors":
        self._resize = resize = UntypedStorage.resize_

        def resized(storage: UntypedStorage, size: int) -> Any:  # as FSDP2 does, which frees weights so
            found = resize(storage, size)
            if (known := self._sizes.get(storage)) is not None:
                self._change(size - known[0])
                known[0] = size
            return found

        UntypedStorage.resize_ = resized  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def forget_peak(self) -> int:
        """Begin a new peak at what is alive now; returns that."""
        self.peak = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # it becomes operations on parts and messages, which come here
        out = func(*args, **(kwargs or {}))
        for one in tree_iter(out):
            if isinstance(one, Tensor) and not isinstance(one, DTensor):
                self._add(one.untyped_storage())
        return out

    def _add(self, storage: UntypedStorage) -> None:
        if storage in self._sizes:
            return
        size = [storage.nbytes()]
        self._sizes[storage] = size
        self._change(size[0])
        weakref.finalize(storage, self._drop, size)

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, size: list[int]) -> None:
        self.now -= size[0]
