"""R29, R30: a server that is told to stop, or is killed, leaves nothing behind that the next one meets."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

COMMAND = (sys.executable, "-m", "llamita", "serve", "-q", "--log-level", "warning")


def started(small_path: Path, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """A server as a process of its own, and its address."""
    words = [*COMMAND, "-m", str(small_path), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def written(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """What a server wrote to stderr until a signal ended it."""
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


def test_r30_a_killed_server_can_be_started_again_at_its_port(small_path: Path) -> None:
    process, address = started(small_path)
    written(process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    process, again = started(small_path, int(address.rpartition(":")[2]))
    assert again == address
    assert httpx.get(f"{address}/health", trust_env=False).status_code == 200
    assert "Traceback" not in written(process, signal.SIGTERM)
    assert process.returncode == 0


@pytest.mark.parametrize("wait", [0.1, 0.7])
def test_r29_a_server_that_still_loads_can_be_stopped(small_path: Path, wait: float) -> None:
    process = subprocess.Popen([*COMMAND, "-m", str(small_path), "--port", "0"], stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    assert "Traceback" not in written(process, signal.SIGTERM)
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
