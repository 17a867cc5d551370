"""Compile a grammar in a process of its own first: a hostile one that hangs or crashes ends only that process."""

import signal
import subprocess
import sys
from functools import lru_cache

from llamita.errors import UsageError

SECONDS = 2  # of the processor's time: a grammar is not refused because others keep the machine busy
PATIENCE = 30.0  # seconds by the clock, for a process that hangs without computing
STACK = 4 * 2**20  # half of what a thread has: what fits here fits there
# Run with -I, which leaves the working directory out; the grammar comes by standard input.
PROGRAM = f"""
import sys, threading
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, resource.getrlimit(resource.RLIMIT_CPU)[1]))
except ImportError:  # Windows has the clock alone
    pass
from llguidance._lib import LLMatcher
source = sys.stdin.buffer.read().decode()
threading.stack_size({STACK})
worker = threading.Thread(target=LLMatcher.validate_grammar, args=(source,))
worker.start()
worker.join()
"""
TOO_LONG = f"the grammar takes more than {SECONDS} s to compile: make it simpler"


@lru_cache(maxsize=128)  # clients send the same schema with every request
def validate(source: str) -> str:
    """Return the grammar once it has compiled, with success or an error, in time and within the stack.

    llguidance bounds most of its own work; intersections of many patterns and very deep rules go past its bounds.
    Costs the start of a process, some 50 ms, unless the same grammar has passed before.
    Raises UsageError where it takes more than 2 seconds of the processor, or ends the process.
    """
    command = [sys.executable, "-I", "-c", PROGRAM]
    try:
        done = subprocess.run(command, input=source.encode(), capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise UsageError(TOO_LONG) from error
    if sys.platform != "win32" and done.returncode == -signal.SIGXCPU:
        raise UsageError(TOO_LONG)
    if not 0 <= done.returncode <= 255:  # killed by a signal, or by Windows
        raise UsageError("the grammar is nested too deeply to compile: make it simpler")
    return source
