"""The engine's thread, which owns the model: it makes steps while there is work, and runs commands between two."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from llamita.engine.engine_core import EngineCore
from llamita.errors import AbortedError, ClosedError

if TYPE_CHECKING:
    from llamita.parallel.followers import Followers

Result = TypeVar("Result")


class Command(NamedTuple):
    """What the thread is to do, and what is to be done with an error where it has stopped before."""

    run: Callable[[], object]
    drop: Callable[[BaseException], object]


class EngineThread(threading.Thread):
    """Runs an engine's core until `stop`, or until that fails; commands that come later are dropped.

    core: no other thread may touch it, but for its `stats` and `abandon`. followers: are closed at the end. failure:
    what the thread has ended by, None where nothing is wrong.
    """

    def __init__(self, core: EngineCore, followers: "Followers | None" = None) -> None:
        super().__init__(name="llamita-engine", daemon=True)
        self._core, self._followers = core, followers
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()  # None stops the thread
        self._has_stopped = False
        self._lock = threading.Lock()  # of has_stopped, so that no command is put after the last one was taken
        self.failure: BaseException | None = None

    def put(self, run: Callable[[], object], drop: Callable[[BaseException], object]) -> None:
        """Let the thread run a function; where it does not, `drop` gets the reason."""
        if self.is_alive():  # in a forked process it is not, and the lock may be held for ever
            with self._lock:
                if not self._has_stopped:
                    self._commands.put(Command(run, drop))
                    return
        drop(self._reason())

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Let the thread call a function between two steps; what is no Exception ends the engine too."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):  # the engine's end, and not of this function alone
                    raise
            finally:
                self._core.runner.begin_run()  # it may have changed the model

        def drop(error: BaseException) -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

        self.put(run, drop)
        return future

    def stop(self, patience: float | None = None) -> bool:
        """Abort all requests, and wait until the thread has ended; returns whether it has.

        patience: seconds to wait, None for any. After them a step is under way that nobody waits for, and all requests
        end for their readers.
        """
        self._commands.put(None)
        self.join(patience)
        if self.is_alive():
            with self._lock:
                self._has_stopped = True
            self._drop_commands()
            self._commands.put(None)  # for the thread, if it comes back
            self._core.abandon(self._reason())
        return not self.is_alive()

    def _drop_commands(self) -> None:
        """Run none of the commands that have come."""
        with suppress(queue.Empty):
            while True:
                if (command := self._commands.get_nowait()) is not None:
                    command.drop(self._reason())

    def _reason(self) -> BaseException:
        """Why the thread runs nothing more."""
        if self.failure is None:
            if not self._has_stopped:
                return ClosedError("the engine is of the process that this one was forked from: make one here")
            return AbortedError("the engine was closed before the text was over")
        reason = ClosedError(f"the engine has failed: {self.failure}")
        reason.__cause__ = self.failure
        return reason

    def run(self) -> None:
        """What the thread does."""
        try:
            # A caller may be in inference mode, whose tensors only this mode can change.
            with torch.inference_mode():
                while self._run_commands():
                    if self._core.has_work:
                        self._core.step()
        except BaseException as error:  # a defect of the engine itself: say so to everybody, rather than hang
            self.failure = error
        with self._lock:
            self._has_stopped = True
        if self._followers is not None:
            self._followers.close()
        self._core.end_all(self._reason())
        self._drop_commands()

    def _run_commands(self) -> bool:
        """Run the commands that have come, waiting for one where there is nothing else to do; False to stop."""
        is_waiting = not self._core.has_work
        while is_waiting or not self._commands.empty():
            command = self._commands.get()  # what `stop` takes from another thread, it replaces by None
            if command is None:
                return False
            if is_waiting:
                self._core.last_step = monotonic()  # an engine without work has not stalled
                self._core.runner.begin_run()  # nor written anything, so that anybody may have changed the model
            command.run()
            is_waiting = False
        return True
