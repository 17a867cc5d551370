"""Compile a grammar in a process of its own first: a hostile one that hangs or crashes ends only that process."""

import subprocess
import sys

from llamita.errors import UsageError

SECONDS = 2.0
STACK = 4 * 2**20  # half of what a thread has: what fits here fits there
# Run with -I, which leaves the working directory out; the grammar comes by standard input.
PROGRAM = f"""
import sys, threading
from llguidance._lib import LLMatcher
source = sys.stdin.buffer.read().decode()
threading.stack_size({STACK})
worker = threading.Thread(target=LLMatcher.validate_grammar, args=(source,))
worker.start()
worker.join()
"""


def validate(source: str) -> str:
    """Return the grammar once it has compiled, with success or an error, in time and within the stack.

    llguidance bounds most of its own work; intersections of many patterns and very deep rules go past its bounds.
    Costs the start of a process, some 50 ms.
    Raises UsageError where it takes longer than 2 seconds, or ends the process.
    """
    command = [sys.executable, "-I", "-c", PROGRAM]
    try:
        done = subprocess.run(command, input=source.encode(), capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"the grammar takes more than {SECONDS:.0f} s to compile: make it simpler") from error
    if not 0 <= done.returncode <= 255:  # killed by a signal, or by Windows
        raise UsageError("the grammar is nested too deeply to compile: make it simpler")
    return source
