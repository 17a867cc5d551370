"""Peak memory of tensors."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any


def peak_bytes(run: Callable[[], float]) -> float:
    """The peak of the bytes that a run allocates for tensors, as torch's profiler counts them.

    It is exact and repeatable; resident memory also has what malloc did not return.
    """
    import torch  # not at the top: processes of other libraries do not import it

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    results = profile.profiler and profile.profiler.kineto_results
    assert results is not None
    memory: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())]
    return float(max(accumulate(changes), default=0))
