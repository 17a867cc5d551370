"""Check that another Python, which has the peers' libraries, can run the benchmark's processes."""

import os
import re
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from llamita.errors import UnsupportedError, UsageError

OLDEST = (3, 11)  # as pyproject.toml says
TIMEOUT = 120  # seconds: importing torch from a cold disk is slow
# The modules that its processes import before a peer's library.
MODULES = ("worker", "decode", "prefill", "load", "memory", "quality", "files", "ours", "serve_peers")
# Prints the Python's version, the versions of the packages, and the first import that fails. Old Pythons can run it.
PROBE = """
import sys
print("python %d.%d" % sys.version_info[:2])
from importlib import import_module, metadata
for name in sys.argv[2:]:
    try:
        print(name + " " + metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
try:
    for name in sys.argv[1].split(","):
        import_module("llamita.bench." + name)
except Exception as error:
    print("failure %s: %s" % (type(error).__name__, str(error).split("\\n")[0]))
"""


def check_is_program(python: str) -> None:
    """Raise UsageError if the path is no program."""
    if shutil.which(python) is None:
        raise UsageError(f"--peers-python {python} is no program: give the path of a Python interpreter")


@cache
def check(python: str) -> None:
    """Raise UsageError if `python` is no Python or too old, UnsupportedError if it lacks what llamita needs."""
    check_is_program(python)
    needs = needed()
    answer = _answers(python, list(needs))
    found = re.fullmatch(r"(\d+)\.(\d+)", answer.pop("python", ""))
    if not found:
        raise UsageError(f"--peers-python {python} is no Python: give the path of a Python interpreter")
    if (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UsageError(f"--peers-python {python} is Python {found[0]}: llamita needs {oldest} or newer there too")
    failure = answer.pop("failure", "")
    absent = [name for name in needs if failure and name not in answer]
    old = {name: answer[name] for name, least in needs.items() if name in answer and is_older(answer[name], least)}
    if failure or old:
        raise UnsupportedError(_lack(python, needs, absent, old, failure))


def _lack(python: str, needs: dict[str, str], absent: list[str], old: dict[str, str], failure: str) -> str:
    parts = [f"lacks {', '.join(absent)}"] if absent else []
    parts += [f"has {name} {version}, which is older than {needs[name]}" for name, version in old.items()]
    parts = parts or [f"cannot run the benchmark ({failure})"]
    line = " ".join(f"'{name}>={needs[name]}'" for name in (*absent, *old) or needs) or "llamita"
    return f"--peers-python {python} {' and '.join(parts)}: {python} -m pip install {line}"


def needed() -> dict[str, str]:
    """The packages that llamita needs, with the oldest version of each; empty if llamita is not installed."""
    try:
        lines = requires("llamita") or []
    except PackageNotFoundError:
        return {}
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", line) for line in lines]  # lines of extras have a marker at the end
    return {match[1]: match[2] for match in found if match}


def is_older(version: str, least: str) -> bool:
    """Whether a version is older than another: 2.9 is older than 2.11; 2.11+cpu and 2.11.0 are not."""
    one, other = (list(map(int, re.findall(r"\d+", text.partition("+")[0]))) for text in (version, least))
    return one + [0] * (len(other) - len(one)) < other


def _answers(python: str, packages: list[str]) -> dict[str, str]:
    """Run the probe: first word of each line -> the rest. Empty if `python` is no Python."""
    try:
        done = subprocess.run(
            [python, "-c", PROBE, ",".join(MODULES), *packages],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in done.stdout.splitlines()}
