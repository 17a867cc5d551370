"""Signals end a run after its step; a second one acts at once."""

import os
import signal
import threading

import pytest

from llamita.train.stopping import stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_question_answered_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stopped_by_signals() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), stopped_by_signals() as should_stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        signal.raise_signal(signal.SIGINT)


def test_other_threads_have_no_signals() -> None:
    answers = []

    def work() -> None:
        with stopped_by_signals() as should_stop:
            answers.append(should_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
