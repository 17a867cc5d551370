"""A batch under way: the server's application answers its requests, as many at once as its engines write."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from llamita.errors import UsageError
from llamita.server.app import create_app
from llamita.server.batch.client import Answer, post
from llamita.server.batch.input import BadLine, BatchRequest
from llamita.server.batch.output import BatchOutput, output_line
from llamita.server.models import ServedModel
from llamita.server.openai.schemas import MOST_PROMPTS
from llamita.server.settings import ServerSettings

UNAVAILABLE = 503  # an engine that has stopped, or too little memory: no answer, and the next run asks again


def in_flight(max_num_seqs: int) -> int:
    """How many requests are asked at once: some are tokenized while the engine is full."""
    return max_num_seqs + max(2, max_num_seqs // 4)


def most_queued(max_num_seqs: int) -> int:
    """How many texts an engine must let wait, so that it never refuses a request of a batch."""
    return in_flight(max_num_seqs) * MOST_PROMPTS


@dataclass(frozen=True)
class Expected:
    """What a batch expects of the models. lines: the first that asks for each name. fingerprints: of its answers."""

    lines: dict[str, int]
    fingerprints: frozenset[str]
    path: Path

    @classmethod
    def of(cls, entries: Sequence[BatchRequest | BadLine], output: BatchOutput) -> "Expected":
        """Of this input, and of what the output has."""
        asked = [(one.model, one.number) for one in entries if isinstance(one, BatchRequest) and one.model is not None]
        return cls(dict(reversed(asked)), frozenset(output.done.fingerprints), output.path)

    def check(self, models: Sequence[ServedModel]) -> None:
        """Raise UsageError for a request of another model, or an output that other models wrote."""
        names = {model.name for model in models}
        for name, number in sorted(self.lines.items(), key=itemgetter(1)):
            if name not in names:
                raise UsageError(
                    f"line {number} asks for the model {name[:60]!r}, here is {', '.join(sorted(names))}: "
                    "name its model by -m, or give this one that name by --alias"
                )
        if self.fingerprints - {model.engine.facts(model.adapter).system_fingerprint for model in models}:
            raise UsageError(
                f"{self.path} has answers of another model, or of other settings: go on with those, name another "
                "output, or replace this one by --force"
            )


def application(models: Sequence[ServedModel], *, has_receipts: bool) -> FastAPI:
    """The server's application, for requests that may take as long as they need."""
    return create_app(models, ServerSettings(request_timeout=None, has_receipts=has_receipts))


def answer_all(
    entries: Sequence[BatchRequest | BadLine],
    models: Sequence[ServedModel],
    output: BatchOutput,
    note: Callable[[], object],
    *,
    has_receipts: bool = False,
) -> None:
    """Add a line to the output for each request that it lacks; `note` is called after each.

    Requests that could not be answered now have none. Raises what BatchOutput.write raises.
    """
    app = application(models, has_receipts=has_receipts)
    at_once = in_flight(max(model.served.limits.max_num_seqs for model in models))
    missing = iter([entry for entry in entries if entry.id not in output.done.ids])
    asyncio.run(_answer_all(app, missing, output, note, at_once))


async def _answer_all(
    app: ASGIApp,
    missing: Iterator[BatchRequest | BadLine],
    output: BatchOutput,
    note: Callable[[], object],
    at_once: int,
) -> None:
    async def work() -> None:
        for entry in missing:  # the workers share it
            if (line := await answered(app, entry)) is not None:
                output.write(line)
            note()

    workers = [asyncio.ensure_future(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def answered(app: ASGIApp, entry: BatchRequest | BadLine) -> bytes | None:
    """The output's line for one of the input, None where the server can give no answer now."""
    if isinstance(entry, BadLine):
        error = {"code": "invalid_request", "message": entry.reason}
        return output_line(entry.id, entry.custom_id, error=error)
    answer = await post(app, entry.url, entry.body, entry.id)
    return None if answer.status == UNAVAILABLE else _answered(entry, answer)


def _answered(entry: BatchRequest, answer: Answer) -> bytes:
    response = {"status_code": answer.status, "request_id": entry.id, "body": json.loads(answer.body)}
    return output_line(entry.id, entry.custom_id, response=response)
