"""Processes by fork: one imports what takes long, torch above all, and forks for each script that is to be run."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping

SERVE = """
import json, os, signal, socket, sys, traceback, warnings
exec(sys.argv[2])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
orders = socket.socket(fileno=int(sys.argv[1]))
while True:
    text, pipes, _, _ = socket.recv_fds(orders, 1 << 18, 1)
    if not text:
        break
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries' threads, which do not run
        is_child = os.fork() == 0
    if not is_child:
        os.close(pipes[0])
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 0
    try:
        os.dup2(pipes[0], 1)
        os.dup2(pipes[0], 2)
        order = json.loads(text)
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.path.insert(0, os.environ["PYTHONPATH"])
        exec(order["script"], {"__name__": "__main__"})
        print(flush=True)
    except BaseException:
        traceback.print_exc()
        code = 1
    os.write(1, bytes(f"exit {code}", "ascii"))
    os._exit(code)
"""


class Zygote:
    """The process that forks. imports: the statement of what it imports; it must start no thread."""

    def __init__(self, imports: str = "import torch") -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            command = [sys.executable, "-W", "error", "-c", SERVE, str(theirs.fileno()), imports]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def start(self, script: str, environment: Mapping[str, str]) -> int:
        """Run a script in a process of its own; its output comes out of this pipe."""
        reading, writing = os.pipe()
        order = json.dumps({"script": script, "environment": dict(environment)})
        socket.send_fds(self._orders, [order.encode()], [writing])
        os.close(writing)
        return reading

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._orders.close()


def result(pipe: int) -> str:
    """What a script printed, once it has ended well."""
    with os.fdopen(pipe) as file:
        printed = file.read()
    assert printed.endswith("exit 0"), printed
    return printed.removesuffix("exit 0").strip()
