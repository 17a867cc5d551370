"""Peak memory of tensors."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any


def peak_bytes(job: Callable[[], float]) -> float:
    """The most bytes of tensors that the job holds at once, beyond those there before, counted by torch's profiler.

    Exact and repeatable, where resident memory also shows what malloc has kept back.
    """
    import torch  # not at the top: processes of other libraries need none

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    results = profile.profiler and profile.profiler.kineto_results
    assert results is not None
    memory: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())]
    return float(max(accumulate(changes), default=0))
