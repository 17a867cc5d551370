"""The models that a server has, by name, and how many requests each has taken on."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from llamita.engine.engine import Engine
from llamita.engine.handle import RequestHandle
from llamita.errors import ClosedError, OverloadedError, UsageError
from llamita.server.errors import RequestError, refused

Result = TypeVar("Result")
LOOK = 1.0  # seconds between looks whether an engine still lives


class ServedModel:
    """A model under the name that requests give, with the engine that writes for it."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self.engine = name, engine
        self.texts = engine.texts
        if self.texts.context_length < 2:
            engine.close()
            raise UsageError(
                f"{name} could have {self.texts.context_length} tokens in all, prompt and answer: allow more"
            )
        self.created = int(time.time())
        _ = engine.facts  # reads all weights, before anybody waits
        self.in_flight = 0  # texts that are prepared, wait or are written; the event loop alone counts
        self.is_draining = False

    @property
    def capacity(self) -> int:
        """How many texts may be written and wait at once."""
        return self.engine.limits.max_num_seqs + self.engine.limits.max_num_queued

    @property
    def is_full(self) -> bool:
        """Whether it takes no more requests now."""
        return self.in_flight >= self.capacity

    @cached_property
    def system_fingerprint(self) -> str:
        """The short form of all that answers depend on besides their requests; reads the weights once."""
        return self.engine.facts.system_fingerprint

    @cached_property
    def most_prompt_characters(self) -> int:
        """More characters than these are more tokens than the context has, whatever they are."""
        pieces = self.texts.tables.texts.pieces
        return self.texts.context_length * max((len(piece) for piece in pieces if piece), default=1)

    def admit(self, count: int) -> None:
        """Admit `count` texts. Raises OverloadedError and ClosedError, before any work is done for them."""
        if self.is_draining or not self.engine.is_alive:
            raise ClosedError("the server is shutting down or its engine has failed: ask another one, or later")
        if self.in_flight + count > self.capacity:
            raise OverloadedError(
                f"{self.in_flight} requests of {self.name} are written or wait already, at most {self.capacity} may: "
                "try again later"
            )
        self.in_flight += count

    def release(self, count: int) -> None:
        """Give back what `admit` took."""
        self.in_flight -= count

    async def call(self, function: Callable[[], Result]) -> Result:
        """The result of a function that the engine's thread calls between two steps. Raises ClosedError."""
        future = asyncio.wrap_future(self.engine.call(function))
        while not future.done():
            await asyncio.wait({future}, timeout=LOOK)
            if not future.done() and not self.engine.is_alive:
                future.cancel()
                raise ClosedError("the engine has stopped: ask later")
        return future.result()

    def cache_use(self, handle: RequestHandle) -> str:
        """How much of a prompt was cached, and the first token that was not, compared with the cached one."""
        cached, prompt, texts = handle.metrics.cached_tokens, handle.prompt_token_ids, self.texts.tables.texts
        found = f"{cached} of {len(prompt)} tokens of the prompt were cached"
        if (other := handle.metrics.cached_instead) is None or cached >= len(prompt):
            return found
        return f"{found}; then it has {texts.of(prompt[cached])!r}, and the cache {texts.of(other)!r}"

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a prompt. Raises RequestError for one that does not fit, before it is tokenized where possible."""
        if len(text) > self.most_prompt_characters:
            raise self.too_long(f"{len(text)} characters")
        return self.texts.tokenizer.encode(text)

    def checked_ids(self, ids: Sequence[int], param: str) -> list[int]:
        """Ids that the model can read and go on from. Raises RequestError for others."""
        if not ids:
            raise refused(f"{param} is empty: give the model a text", param=param)
        if len(ids) >= self.texts.context_length:
            raise self.too_long(f"{len(ids)} tokens", param)
        size = self.texts.model.config.vocab_size
        if outside := next((i for i in ids if not 0 <= i < size), None):
            raise refused(f"token id {outside} is outside the vocabulary of {size}", param=param)
        return list(ids)

    def too_long(self, given: str, param: str = "prompt") -> RequestError:
        """The error of a prompt that fills the context, by OpenAI's code."""
        most = self.texts.context_length
        return refused(
            f"the prompt has {given}, the model reads at most {most} tokens and needs room to write: shorten it",
            param=param,
            code="context_length_exceeded",
        )


@dataclass(frozen=True)
class ModelFacts:
    """What is said of a model when the server starts. parameters: their number. context_length: in tokens."""

    name: str
    parameters: int
    context_length: int

    @classmethod
    def of(cls, model: ServedModel) -> "ModelFacts":
        """Of a loaded model."""
        return cls(model.name, model.texts.model.num_parameters(), model.texts.context_length)


class Models:
    """All models of a server; the first is the one that its page begins with."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        if not models or len(self._models) < len(models):
            raise UsageError("every model needs a name of its own, and there must be one: name them with --alias")

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str) -> ServedModel:
        """The model of a name. Raises RequestError."""
        if name not in self._models:
            known = ", ".join(self._models)
            raise refused(
                f"there is no model {name[:60]!r} here: the models are {known}",
                param="model",
                code="model_not_found",
                status=404,
            )
        return self._models[name]


def short_name(name: str) -> str:
    """What a model is called that was loaded from a folder, a file or the hub: org/name, or the file's own name."""
    path = Path(name).expanduser()
    return (path.stem if path.suffix == ".gguf" else path.resolve().name) if path.exists() else name
