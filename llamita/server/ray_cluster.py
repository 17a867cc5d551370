"""A Ray cluster to run in, and why what ran there has failed. Ray itself is imported by those who need it."""

# pyright: reportMissingImports=false
# Ray is an extra, which the tools of development do not have.
import contextlib
import logging
import os
import re
from collections.abc import Iterator

from llamita import errors
from llamita.checks import shortened
from llamita.errors import AccessError, LlamitaError

LOGGERS = ("ray", "ray.serve", "ray.data")


@contextlib.contextmanager
def cluster(processes: int, store_bytes: int) -> Iterator[bool]:
    """Be in the cluster that RAY_ADDRESS names, or in one that is started here for a while; gives whether it is own.

    processes: that must find a CPU each in an own cluster. store_bytes: of the own object store. Raises AccessError and
    LlamitaError.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report each start to its makers
    is_own = "RAY_ADDRESS" not in os.environ
    # "local" is a cluster of its own, even where this machine has another.
    own = {"address": "local", "num_cpus": max(processes, os.cpu_count() or 1), "object_store_memory": store_bytes}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # What its processes log is in Ray's own files: its lines of a failed start are many.
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **(own if is_own else {}))
    except ConnectionError:
        raise AccessError(
            f"there is no way into the Ray cluster at {os.environ.get('RAY_ADDRESS')}: check RAY_ADDRESS, and give its "
            "token by RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from None
    except Exception as error:  # Ray raises that very class, such as where this machine is too busy for it to start
        raise LlamitaError(f"Ray did not start: {shortened(error, 300)}") from error
    try:
        yield is_own
    finally:
        ray.shutdown()


def cause(trace: str, what: str) -> LlamitaError:
    """Why processes of a cluster failed: our own error in the traceback that Ray keeps of one, else what it says."""
    if found := re.findall(r"llamita\.errors\.(\w+): (.+)", trace):
        name, text = found[-1]
        return getattr(errors, name)(text)
    return LlamitaError(f"{what}: {shortened(trace, 600)}")
