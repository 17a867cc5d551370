"""Jobs for the bench's processes, which need not import torch for most of them."""

import os

from llamita.bench.workers import Run


def failing(message: str) -> Run:
    """Fails while it is prepared."""
    raise ValueError(message)


def failing_later(message: str) -> Run:
    """Fails when it is run."""

    def run() -> float:
        raise ValueError(message)

    return run


def dying() -> Run:
    """Ends its process."""
    return lambda: os._exit(3)


def counting() -> Run:
    """Counts its turns."""
    turns = iter(range(9))
    return lambda: float(next(turns))


def threads() -> Run:
    """Says how many threads torch has."""
    import torch

    return lambda: float(torch.get_num_threads())


def only_ours(system: str, *settings: object) -> Run:
    """Measures llamita, and ends the process of any other system."""
    return (lambda: 2.0) if system == "llamita" else (lambda: os._exit(3))
