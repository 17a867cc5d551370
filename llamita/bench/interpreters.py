"""Another Python that has the peers' libraries: whether it can run the benchmark's processes, and what it lacks."""

import os
import re
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from llamita.errors import UnsupportedError, UsageError

OLDEST = (3, 11)  # as pyproject.toml says
PATIENCE = 120  # seconds: from a cold disk torch is slow to import
# What its processes begin with; a peer's library comes after.
MODULES = ("worker", "decode", "prefill", "load", "memory", "quality", "files", "ours")
# Any Python understands the first lines: its version, what it has of the packages named, what keeps it from the rest.
QUESTION = """
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
    """Raise UsageError for a path where no program is."""
    if shutil.which(python) is None:
        raise UsageError(f"--peers-python {python} is no program: give the path of a Python interpreter")


@cache
def check(python: str) -> None:
    """Raise UsageError where `python` is no Python new enough, UnsupportedError where it lacks what llamita needs."""
    check_is_program(python)
    needs = needed()
    answer = _asked(python, list(needs))
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
    """The packages that llamita needs, and the oldest version of each; none where it is not installed."""
    try:
        lines = requires("llamita") or []
    except PackageNotFoundError:
        return {}
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", line) for line in lines]  # those of extras have more behind
    return {match[1]: match[2] for match in found if match}


def is_older(version: str, least: str) -> bool:
    """Whether a version's numbers come before another's: 2.9 before 2.11; 2.11+cpu and 2.11.0 not before 2.11."""
    one, other = (list(map(int, re.findall(r"\d+", text.partition("+")[0]))) for text in (version, least))
    return one + [0] * (len(other) - len(one)) < other


def _asked(python: str, packages: list[str]) -> dict[str, str]:
    """What an interpreter answers, by the first word of each line; nothing where it is none."""
    try:
        done = subprocess.run(
            [python, "-c", QUESTION, ",".join(MODULES), *packages],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in done.stdout.splitlines()}
