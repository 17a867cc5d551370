"""R29, R30: a server that is told to stop, or is killed, leaves nothing behind that the next one meets."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.zygote import Zygote

SERVE = ("serve", "-q", "--log-level", "warning")


def test_r30_a_killed_server_can_be_started_again_at_its_port(small_path: Path, zygote: Zygote) -> None:
    with closing(zygote.open([*SERVE, "-m", str(small_path), "--port", "0"])) as process:
        address = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
        assert process.wait(300) == -signal.SIGKILL
    with closing(zygote.open([*SERVE, "-m", str(small_path), "--port", address.rpartition(":")[2]])) as process:
        assert process.stdout.readline().strip() == address
        assert httpx.get(f"{address}/health", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
        assert process.wait(300) == 0


@pytest.mark.parametrize("wait", [0.1, 0.7])
def test_r29_a_server_that_still_loads_can_be_stopped(small_path: Path, wait: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llamita", *SERVE, "-m", str(small_path), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(wait)
    process.send_signal(signal.SIGTERM)
    assert "Traceback" not in process.communicate(timeout=300)[1]
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
