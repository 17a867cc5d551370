"""Saving now and then: of several ranks, each goes on with the steps while its shards are written."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import distributed

from llamita.parallel import mesh
from llamita.train import state
from llamita.train.run import Run


class Saver:
    """Saves a run to a folder, for as long as the block lasts; every rank has one and calls it at the same steps.

    One process writes while it is asked. Of several, each copies its shards to the CPU's memory, and a thread writes
    them; the next save waits for it, and so does the end of the block. keep: how many of the newest checkpoints stay.
    """

    def __init__(self, run: Run, folder: Path, *, keep: int = state.COUNT) -> None:
        self.run, self.folder, self.keep = run, folder, keep
        self._pending: Future[None] | None = None
        self._group: Any = None  # of its own, as its messages must not mix with those of the steps
        if mesh.world_size() > 1:
            self._group = distributed.new_group(backend="gloo", timeout=mesh.TIMEOUT)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with nullcontext() if error is None else suppress(Exception):  # what ended the block is what is said
            self.wait()

    def save(self) -> None:
        """Save the run as it is now. Raises what `state.save` does, of the checkpoint before where that has failed."""
        if self._group is None:
            state.save(self.run, self.folder, keep=self.keep)
            return
        self.wait()
        draft = mesh.from_first(lambda: state.drafted(self.run, self.folder, keep=self.keep))
        if draft is None:
            return
        from llamita.train import shards  # here, as it loads torch.distributed.checkpoint

        named = {state.WEIGHT + name: weight for name, weight in self.run.weights().items()}
        named |= {state.STATE + name: tensor for name, tensor in self.run.memory().items()}
        copies = shards.staged(named)

        def write() -> None:
            with draft.written():
                shards.save(copies, draft, self._group)

        self._pending = self._thread.submit(write)

    def wait(self) -> None:
        """Wait until what was begun is the latest checkpoint. Raises LlamitaError where it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
