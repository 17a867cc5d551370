"""Leaving a run politely: SIGTERM and Ctrl-C end it after the step under way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """A question: has a signal asked to stop? A second signal acts at once, as it does outside of this block."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
