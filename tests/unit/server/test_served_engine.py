"""Served engines: how many requests they take, and how they leave the memory and come back."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from llamita.engine import garbage
from llamita.engine.engine import Engine
from llamita.engine.limits import EngineLimits
from llamita.errors import ClosedError, NotFoundError, OverloadedError
from llamita.loader import load
from llamita.server import served_engine
from llamita.server.served_engine import ServedEngine


@pytest.fixture
def made(small_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Engine]:
    """Loads a model and starts its engine."""
    monkeypatch.setattr(garbage, "collect", gc.collect)  # the tests have frozen libraries alone, which it would search
    return lambda: load(small_path).engine(EngineLimits(max_num_seqs=2, max_num_queued=1))


def test_admission_counts(made: Callable[[], Engine]) -> None:
    served = ServedEngine("a", made())
    served.admit(3)
    assert served.is_full
    with pytest.raises(OverloadedError, match="try again later"):
        served.admit(1)
    served.release(2)
    served.admit(1)
    served.close()
    assert served.has_failed
    with pytest.raises(ClosedError):
        served.admit(1)
    served.is_draining = True
    assert not served.has_failed


def test_what_is_unloaded_is_out_of_memory_and_comes_back_once(made: Callable[[], Engine]) -> None:
    loads: list[int] = []

    def again() -> Engine:
        loads.append(1)
        return made()

    async def run() -> None:
        served = ServedEngine("a", made(), again)
        served.engine.submit("Once", max_tokens=5).result()
        before, weights = served.stats, weakref.ref(served.engine.texts.model)
        assert before.generation_tokens == 5
        await served.unload()
        assert not served.is_loaded
        assert not served.has_failed
        assert weights() is None
        assert served.stats.generation_tokens == 5
        with pytest.raises(ClosedError, match="ask again"):
            served.admit(1)
        await asyncio.gather(*(served.ready() for _ in range(5)))
        assert len(loads) == 1
        served.engine.submit("Once", max_tokens=3).result()
        assert (served.stats.generation_tokens, served.stats.steps) == (8, before.steps + served.engine.stats.steps)
        await served.unload()
        assert served.stats.generation_tokens == 8

    asyncio.run(run())


def test_only_what_nobody_uses_and_can_come_back_is_idle(
    made: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(served_engine, "monotonic", lambda: now[0])
    kept, served = ServedEngine("a", made()), ServedEngine("a", made(), made)
    now[0] += 60
    assert not kept.is_unused(60)
    assert served.is_unused(60)
    assert not served.is_unused(61)
    served.admit(1)
    assert not served.is_unused(60)
    served.release(1)
    assert not served.is_unused(0)  # it is only just over
    now[0] += 60
    assert served.is_unused(60)
    asyncio.run(served.ready())
    assert not served.is_unused(0)
    now[0] += 60
    served.is_draining = True
    assert not served.is_unused(60)
    kept.close()
    served.close()


def test_a_model_that_is_gone_is_unavailable(made: Callable[[], Engine]) -> None:
    def gone() -> Engine:
        raise NotFoundError("the folder is not there")

    async def run() -> None:
        served = ServedEngine("a", made(), gone)
        await served.unload()
        for _ in range(2):
            with pytest.raises(ClosedError, match="a was unloaded and cannot be loaded again: the folder is not there"):
                await served.ready()

    asyncio.run(run())
