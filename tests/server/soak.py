"""R15: minutes of mixed requests, aborts among them: memory, descriptors and threads stay, and all blocks come back.

python -m tests.server.soak --minutes 10
"""

import argparse
import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

WORKERS = 8
WARM_UP = 0.2  # of the time, before the memory counts
MOST_GROWTH = 1.0  # MB a minute
ASKS = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Tell me a story."}]}),
    ("/v1/completions", {"prompt": "Once upon a time", "logprobs": 2}),
    ("/v1/completions", {"prompt": ["A", "The cat"], "n": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "A name?"}], "regex": "[A-Z][a-z]{2,8}"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "Who are you?"}]}),
    ("/v1/embeddings", {"input": "a text"}),
    ("/v1/completions", {"prompt": []}),  # refused
)


async def work(client: httpx.AsyncClient, dice: random.Random, until: float, counts: dict[str, int]) -> None:
    """Ask for one thing after another; leave one answer in three before it is over."""
    while time.monotonic() < until:
        path, body = dice.choice(ASKS)
        asked = {"model": "cria", "max_tokens": dice.randrange(1, 80), "temperature": 1.0, **body}
        asked["stream"] = dice.random() < 0.6 and path != "/v1/embeddings"
        patience = dice.uniform(0.01, 0.2) if dice.random() < 0.33 else 60
        if path == "/v1/embeddings":
            asked = {"model": "cria", **body}
        try:
            async with asyncio.timeout(patience):
                answer = await client.post(path, json=asked)
            counts[str(answer.status_code)] = counts.get(str(answer.status_code), 0) + 1
        except TimeoutError:
            counts["left"] = counts.get("left", 0) + 1


async def soak(url: str, pid: int, minutes: float) -> tuple[dict[str, int], list[tuple[float, float]]]:
    """Let the workers work; the counts of answers, and the memory over time as (seconds, MB)."""
    process, counts, seen = psutil.Process(pid), {}, []
    start, until = time.monotonic(), time.monotonic() + 60 * minutes
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        workers = [asyncio.ensure_future(work(client, random.Random(n), until, counts)) for n in range(WORKERS)]
        while time.monotonic() < until:
            await asyncio.sleep(1)
            seen.append((time.monotonic() - start, process.memory_info().rss / 1e6))
        await asyncio.gather(*workers)
    return counts, seen


def slope(points: list[tuple[float, float]]) -> float:
    """MB a minute, by least squares."""
    times, sizes = zip(*points, strict=True)
    middle, mean = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((time - middle) ** 2 for time in times)
    return 60 * sum((time - middle) * (size - mean) for time, size in points) / spread


def main() -> int:
    """Soak a server of cria; 1 where something grew or was not given back."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    command = [sys.executable, "-m", "llamita", "serve", "-q", "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        process = psutil.Process(server.pid)
        asyncio.run(soak(url, server.pid, 0.1))
        before = process.num_fds(), process.num_threads()
        counts, seen = asyncio.run(soak(url, server.pid, minutes))
        time.sleep(2)
        after = process.num_fds(), process.num_threads()
        metrics = dict(
            line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")
        )
        server.terminate()
    growth = slope([point for point in seen if point[0] > 60 * minutes * WARM_UP])
    print(f"answers {counts}")
    print(f"memory {seen[-1][1]:.0f} MB, {growth:+.2f} MB a minute; descriptors and threads {before} -> {after}")
    blocks = {name: float(value) for name, value in metrics.items() if "kv_blocks" in name}
    print(f"blocks {blocks}")
    free = sum(value for name, value in blocks.items() if "free" in name)
    total = sum(value for name, value in blocks.items() if "total" in name)
    is_kept = growth < MOST_GROWTH and after[0] <= before[0] + WORKERS and after[1] <= before[1] + 2 and free == total
    print("held" if is_kept and total else "NOT held")
    return 0 if is_kept and total else 1


if __name__ == "__main__":
    sys.exit(main())
