"""A batch on Ray Data: processes of this machine or of a cluster, each with the models, answer its lines."""

# pyright: reportMissingImports=false
# Ray is an extra, which the tools of development do not have.
import asyncio
import json
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llamita.errors import UnsupportedError
from llamita.server import log
from llamita.server.batch.input import BadLine, BatchRequest
from llamita.server.batch.output import BatchOutput
from llamita.server.batch.runner import Expected, answered, application, in_flight
from llamita.server.models import ServedModel
from llamita.server.ray_cluster import cause, cluster

try:
    import ray
    import ray.data
    from ray.exceptions import RayError
except ImportError:
    raise UnsupportedError("--ray needs Ray Data: pip install 'llamita[scale]'") from None

LINES = 4  # of a block, which is answered as one task: a task for each line would cost more than short answers
STORE_BYTES = 500_000_000  # of an own cluster's object store, for the input; what is more goes to the disk
Rows = dict[str, np.ndarray]


class Answerer:
    """A process with the models and the server's own application, which answers blocks of lines, several at once."""

    def __init__(self, load: Callable[[], list[ServedModel]], expected: Expected, has_receipts: bool) -> None:
        log.set_up("warning")
        models = load()
        expected.check(models)
        self._app = application(models, has_receipts=has_receipts)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __call__(self, rows: Rows) -> Rows:
        """The output's lines for pickled ones of the input, empty where there can be no answer now."""
        entries = [pickle.loads(one) for one in rows["entry"]]
        lines = asyncio.run_coroutine_threadsafe(self._answered(entries), self._loop).result()
        return {"line": np.array([line or b"" for line in lines], dtype=object)}

    async def _answered(self, entries: Sequence[BatchRequest | BadLine]) -> list[bytes | None]:
        return await asyncio.gather(*(answered(self._app, entry) for entry in entries))


def answer_all(
    entries: Sequence[BatchRequest | BadLine],
    load: Callable[[int], Callable[[], list[ServedModel]]],
    output: BatchOutput,
    note: Callable[[], object],
    *,
    replicas: int | None,
    max_num_seqs: int,
    num_gpus: int = 0,
    has_receipts: bool = False,
) -> None:
    """Add a line to the output for each request that it lacks; `note` is called after each.

    load: for a number of processes on a machine, what loads the models in one of them; pickled. replicas: the
    processes, one on each machine by default. Raises what loading and checking the models raises, and LlamitaError.
    """
    missing = [{"entry": pickle.dumps(entry)} for entry in entries if entry.id not in output.done.ids]
    with cluster(replicas or 1, STORE_BYTES):
        machines = sum(node["Alive"] for node in ray.nodes())
        count = min(replicas or machines, len(missing))
        arguments = load(-(-count // machines)), Expected.of(entries, output), has_receipts
        answers = _dataset(missing, arguments, count, in_flight(max_num_seqs), num_gpus)
        try:
            for row in answers.iter_rows():
                _take(row["line"], output, note)
        except RayError as error:
            raise cause(str(error), "the processes that answer have failed") from None


def _dataset(
    missing: list[dict[str, bytes]], arguments: tuple[Any, ...], count: int, at_once: int, num_gpus: int
) -> "ray.data.Dataset":
    """The lines of the output, from `count` processes with this number of requests at once."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    calls = -(-at_once // LINES)
    pool = ray.data.ActorPoolStrategy(
        size=count,
        max_tasks_in_flight_per_actor=2 * calls,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=True,
    )
    return ray.data.from_items(missing, override_num_blocks=-(-len(missing) // LINES)).map_batches(
        Answerer,
        fn_constructor_args=arguments,
        batch_size=LINES,
        batch_format="numpy",
        compute=pool,
        num_cpus=1,
        num_gpus=num_gpus,
    )


def _take(line: bytes, output: BatchOutput, note: Callable[[], object]) -> None:
    """Write a line that is an answer; Ray may compute a block again, whose process has died."""
    if line and json.loads(line)["id"] not in output.done.ids:
        output.write(line)
    note()
