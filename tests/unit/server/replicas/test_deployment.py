"""llamita serve --replicas: requests that begin alike meet one replica, and one that dies is not missed."""

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llamita.cli.main import main

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray Serve is not installed: pip install 'llamita[scale]'")
PATIENCE = 120.0  # seconds


@pytest.mark.skipif(HAS_RAY, reason="Ray Serve is installed")
def test_without_ray(small_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--replicas", "2", "-m", str(small_path), "--port", "0"]) == 6
    assert capsys.readouterr().err == "llamita: --replicas needs Ray Serve: pip install 'llamita[scale]'\n"


def test_a_wrong_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--replicas", "0"]) == 2
    assert "--replicas is 0" in capsys.readouterr().err


@pytest.fixture(scope="module")
def process(small_path: Path) -> Iterator[subprocess.Popen]:
    """A server of two replicas."""
    words = ["serve", "--replicas", "2", "-m", str(small_path), "--alias", "m", "--port", "0", "-q"]
    command = [sys.executable, "-m", "llamita", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def client(process: subprocess.Popen) -> Iterator[httpx.Client]:
    assert process.stdout is not None
    with httpx.Client(base_url=process.stdout.readline().strip(), timeout=PATIENCE) as client:
        yield client


def replicas(process: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [one for one in children if one.is_running() and "ServeReplica" in "".join(one.cmdline()[:1])]


def complete(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    body = {"model": "m", "prompt": prompt, "max_tokens": 3, "seed": 1, **fields}
    return client.post("/v1/completions", json=body)


@needs_ray
def test_replicas(process: subprocess.Popen, client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    assert len(replicas(process)) == 2
    prompts = [f"{number} of the many prompts that are asked again" for number in range(12)]
    texts = {prompt: complete(client, prompt).json()["choices"][0]["text"] for prompt in prompts}
    for prompt in prompts:  # each comes back to where it is cached
        again = complete(client, prompt).json()
        assert again["choices"][0]["text"] == texts[prompt]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    with client.stream("POST", "/v1/completions", json={"model": "m", "prompt": "a", "stream": True}) as response:
        assert list(response.iter_lines())[-2] == "data: [DONE]"
    written = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("llamita:generation_tokens_t")
    ]
    assert len(written) == 2
    assert sum(float(line.split()[-1]) for line in written) >= 3 * len(texts)
    refused = complete(client, "a", max_tokens=-1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert len(refused.headers.get_list("x-request-id")) == 1
    replicas(process)[0].kill()
    assert [complete(client, prompt).json()["choices"][0]["text"] for prompt in prompts] == list(texts.values())
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


@needs_ray
def test_a_model_that_cannot_be_loaded() -> None:
    words = ["serve", "--replicas", "1", "-m", "/none", "--port", "0"]
    found = subprocess.run([sys.executable, "-m", "llamita", *words], capture_output=True, text=True, timeout=PATIENCE)
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr == "llamita: no folder '/none', and names on the hub have the form organisation/name\n"
