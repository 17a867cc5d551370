"""Processes by fork: one imports what takes long, torch above all, and forks for each script that is to be run."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.architecture.source import ROOT

SERVE = """
import contextlib, json, os, signal, socket, sys, traceback, warnings
exec(sys.argv[2])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
orders = socket.socket(fileno=int(sys.argv[1]))
while True:
    text, pipes, _, _ = socket.recv_fds(orders, 1 << 18, 4)
    if not text:
        break
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries' threads, which do not run
        is_child = os.fork() == 0
    if not is_child:
        for pipe in pipes:
            os.close(pipe)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to it
    code, answer, *streams = 0, *pipes
    try:
        for number, stream in enumerate(streams or (os.open(os.devnull, os.O_RDONLY), answer, answer)):
            os.dup2(stream, number)
        order = json.loads(text)
        if is_watched := order.get("is_watched", False):
            if pid := os.fork():  # it may end in any way: this process tells who it is, waits, and tells the code
                os.write(answer, b"%d\\n" % pid)
                os.write(answer, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os._exit(0)
            os.close(answer)
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.path.insert(0, os.environ["PYTHONPATH"])
        exec(order["script"], {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):  # of a pipe whose reader has left
        sys.stdout.flush()
    if not is_watched:
        os.write(answer, bytes(f"\\nexit {code}", "ascii"))
    os._exit(code)
"""

# Needs no library, and so costs milliseconds.
COMMAND = """#!{python} -IS
import json, os, socket, sys
reading, writing = os.pipe()
script = f"import sys; from llamita.cli.main import main; sys.argv = {{sys.argv!r}}; sys.exit(main())"
order = {{"script": script, "folder": os.getcwd(), "environment": {{**os.environ, "PYTHONPATH": {path!r}}}}}
with socket.socket(fileno={orders}) as orders:
    socket.send_fds(orders, [json.dumps(order).encode()], [writing, 0, 1, 2])
os.close(writing)
with os.fdopen(reading) as file:
    sys.exit(int(file.read().removeprefix("\\nexit ") or 1))
"""


class Forked:
    """A command line in a process of its own, with what of `subprocess.Popen` tests need; it can be read once."""

    def __init__(self, answer: int, stdout: int, stderr: int) -> None:
        self._answer = os.fdopen(answer)
        self.stdout, self.stderr = os.fdopen(stdout), os.fdopen(stderr)
        self.pid, self.returncode = int(self._answer.readline()), None

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code if it has ended: minus a signal's number if that ended it."""
        return self._ended(0.0)

    def wait(self, seconds: float) -> int:
        """Its exit code, once it has ended."""
        code = self._ended(seconds)
        assert code is not None, "it does not end"
        return code

    def _ended(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._answer], [], [], seconds)[0]:
            self.returncode = int(self._answer.read())
        return self.returncode

    def close(self) -> None:
        """Kill it, if it has not ended, and close what it was read from."""
        self.send_signal(signal.SIGKILL)
        for stream in (self._answer, self.stdout, self.stderr):
            stream.close()


class Zygote:
    """The process that forks. imports: the statement of what it imports; it must start no thread."""

    def __init__(self, imports: str = "import torch") -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            command = [sys.executable, "-W", "error", "-c", SERVE, str(theirs.fileno()), imports]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    @property
    def orders(self) -> int:
        """The file descriptor that programs of `write_command` need."""
        return self._orders.fileno()

    def start(self, script: str, environment: Mapping[str, str]) -> int:
        """Run a script in a process of its own; its output comes out of this pipe."""
        reading, writing = os.pipe()
        order = {"script": script, "folder": str(Path.cwd()), "environment": dict(environment)}
        socket.send_fds(self._orders, [json.dumps(order).encode()], [writing])
        os.close(writing)
        return reading

    def open(self, words: Sequence[str]) -> Forked:
        """Run the command line, with nothing to read."""
        script = f"import sys; from llamita.cli.main import main; sys.argv = {['llamita', *words]!r}; sys.exit(main())"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        order = {"script": script, "folder": str(Path.cwd()), "environment": environment, "is_watched": True}
        (answer, *outputs), pipes = zip(*(os.pipe() for _ in range(3)), strict=True)
        nothing = os.open(os.devnull, os.O_RDONLY)
        socket.send_fds(self._orders, [json.dumps(order).encode()], [pipes[0], nothing, *pipes[1:]])
        for descriptor in (nothing, *pipes):
            os.close(descriptor)
        return Forked(answer, *outputs)

    def write_command(self, folder: Path) -> None:
        """Put a program `llamita` into a folder, which runs the command line in a process that this one forks."""
        program = folder / "llamita"
        program.write_text(COMMAND.format(python=sys.executable, path=str(ROOT), orders=self.orders), encoding="utf-8")
        program.chmod(0o755)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._orders.close()


def result(pipe: int) -> str:
    """What a script printed, once it has ended well."""
    with os.fdopen(pipe) as file:
        printed = file.read()
    assert printed.endswith("\nexit 0"), printed
    return printed.removesuffix("\nexit 0").strip()
