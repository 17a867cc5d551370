"""R15: mixed requests leave nothing behind; `python -m tests.server.soak` watches the memory for ten minutes."""

import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import psutil

from llamita.engine.handle import RequestHandle
from llamita.engine.limits import EngineLimits
from llamita.engine.live import LiveRequest
from llamita.generation.sequence import Sequence
from llamita.llm import LLM
from llamita.server.submission import Submission
from tests.server.serving import Running, chat, serving, wait_until

REQUESTS, WORKERS = 80, 8
BAD: list[dict[str, Any]] = [{"temperature": 9}, {"messages": []}, {"response_format": {"type": "sound"}}]


def one(server: Running, number: int) -> None:
    """A request of some kind: whole, streamed, left, several texts, with a form, of ids, or bad."""
    chance = random.Random(number)
    fields: dict[str, Any] = {"max_tokens": chance.randint(1, 24), "temperature": 1, "seed": number}
    text = "Tell me of " + " and ".join(chance.choices(["a fox", "the sea", "Mia", "a hat"], k=chance.randint(1, 9)))
    match chance.randint(0, 6):
        case 0:
            server.post("/v1/chat/completions", chat(text, **fields))
        case 1:
            server.post("/v1/chat/completions", chat(text, **fields, stream=True, n=2))
        case 2:
            server.post("/v1/chat/completions", chat(text, **fields, regex="[a-z]{3}"))
        case 3:
            server.post("/v1/chat/completions", chat(text) | BAD[number % len(BAD)])
        case 4:
            server.post("/v1/completions", {"model": "cria", "prompt": [300, number], **fields})
        case 5:
            server.post("/v1/embeddings", {"model": "cria", "input": text})
        case _:
            body = chat(text, max_tokens=400, stream=chance.random() < 0.5)
            with suppress(httpx.TimeoutException):
                httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=0.05, trust_env=False)


def soak(server: Running, first: int) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda number: one(server, number), range(first, first + REQUESTS)))
    wait_until(lambda: server.in_flight == 0, "the end of the requests")


def kept() -> int:
    """How many objects of requests are alive."""
    gc.collect()
    return sum(type(one) in (RequestHandle, LiveRequest, Submission, Sequence) for one in gc.get_objects())


def test_r15_nothing_is_left_of_many_requests(cria: LLM) -> None:
    process = psutil.Process()
    with serving(cria, limits=EngineLimits(max_num_seqs=4, num_blocks=70)) as server:
        soak(server, 0)  # threads and connections that stay
        before = kept(), process.num_fds(), threading.active_count()
        soak(server, REQUESTS)
        after = kept(), process.num_fds(), threading.active_count()
        assert after[0] <= before[0]
        assert after[1] <= before[1] + WORKERS
        assert after[2] <= before[2] + WORKERS  # a pool starts its last threads late
        stats = server.model.engine.stats
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.blocks)
        server.model.engine.call(server.model.engine._core.scheduler.check_integrity).result(300)
        assert server.get("/health").status_code == 200
