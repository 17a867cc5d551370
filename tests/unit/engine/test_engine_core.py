"""The steps of the engine, one by one."""

import itertools
import json
import shutil
import threading
from pathlib import Path

import pytest

import llamita
from llamita.engine.limits import EngineLimits
from llamita.errors import AbortedError
from llamita.llm import LLM
from tests.small import END, END_OF_TURN
from tests.unit.engine.integrity import checked

ENDLESS = {END: -100.0, END_OF_TURN: -100.0}
SMALL = EngineLimits(max_num_seqs=5, max_num_batched_tokens=7, block_size=4, num_blocks=34)


@pytest.fixture(scope="module")
def llm(small_path: Path) -> LLM:
    """A model with kernels."""
    return llamita.load(small_path, dtype="bfloat16")


# What a request is doing, and how many steps it takes until then: 7 tokens of 30 are read in each.
STATES = {"queued": 0, "half read": 2, "read but for its last token": 4, "writing": 8, "before its last token": 15}


@pytest.mark.parametrize("state", STATES)
def test_r6_an_abort_gives_back_all_blocks_in_every_state(llm: LLM, state: str) -> None:
    with checked(llm.engine(SMALL)) as engine:
        held = threading.Event()
        engine.call(held.wait)
        handle = engine.submit(list(range(30)), max_tokens=12, temperature=0.0, logit_bias=ENDLESS)

        def step_and_abort() -> int:
            for _ in range(STATES[state]):
                engine._core.step()
            written = engine.stats.generation_tokens
            engine._core.abort(handle)
            return written

        aborted = engine.call(step_and_abort)
        held.set()
        written = aborted.result(300)
        assert written == {"writing": 4, "before its last token": 11}.get(state, 0)
        deltas = []
        with pytest.raises(AbortedError):
            deltas += handle
        handle.abort()  # twice, and of an id that the engine no longer has
        assert engine.call(lambda: None).result(300) is None
        assert (engine.stats.running, engine.stats.waiting, engine.stats.generation_tokens) == (0, 0, written)
        assert engine.stats.free_blocks == engine.stats.blocks
        assert engine.submit("a", max_tokens=3, seed=1).result(300) == llm.generate("a", max_tokens=3, seed=1)


def test_a_cached_prompt_of_2000_tokens_has_its_first_token_after_one_step(small_path: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_path, tmp_path / "longer")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 2048}))
    prompt = [number * number % 251 for number in range(2000)]
    with checked(llamita.load(folder, dtype="bfloat16").engine()) as engine:
        steps = [0]
        for ids in (prompt, prompt, [*prompt[:1995], *range(40)]):
            engine.submit(ids, max_tokens=1, temperature=0.0).result(300)
            steps.append(engine.call(lambda: engine.stats.steps).result(300))
    assert [after - before for before, after in itertools.pairwise(steps)] == [16, 1, 1]
