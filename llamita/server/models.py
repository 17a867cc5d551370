"""The models that a server has, by name, and those of their adapters."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from llamita.engine.engine import Engine
from llamita.engine.handle import RequestHandle
from llamita.errors import UsageError
from llamita.files.disk import named_path
from llamita.generation.text_options import TextModel
from llamita.server.errors import RequestError, refused
from llamita.server.served_engine import ServedEngine


class ServedModel:
    """A name that requests give: a model, or one of its adapters, which has the same engine."""

    def __init__(self, name: str, served: ServedEngine, adapter: str | None = None) -> None:
        self.name, self.served, self.adapter = name, served, adapter
        self.created = int(time.time())

    @property
    def engine(self) -> Engine:
        """The engine that writes. Raises ClosedError while it is unloaded."""
        return self.served.engine

    @property
    def texts(self) -> TextModel:
        """The model that writes, with its adapter. Raises ClosedError while it is unloaded."""
        return self.engine.texts.with_adapter(self.adapter)

    @property
    def system_fingerprint(self) -> str | None:
        """The short form of all that answers depend on besides their requests; None until the weights are read."""
        facts = self.engine.known_facts(self.adapter)
        return None if facts is None else facts.system_fingerprint

    @cached_property
    def most_prompt_characters(self) -> int:
        """More characters than these are more tokens than the context has, whatever they are."""
        pieces = self.texts.tables.texts.pieces
        return self.texts.context_length * max((len(piece) for piece in pieces if piece), default=1)

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
            raise self.too_long(f"{len(ids)} tokens > {self.texts.context_length - 1} maximum", param)
        size = self.texts.model.config.vocab_size
        if outside := next((i for i in ids if not 0 <= i < size), None):
            raise refused(f"token id {outside} is outside the vocabulary of {size}", param=param)
        return list(ids)

    def too_long(self, given: str, param: str = "prompt") -> RequestError:
        """The error of a prompt that fills the context.

        Clients know it by OpenAI's code or by Anthropic's words, "prompt is too long: 9 tokens > 8 maximum", and
        shorten the conversation themselves.
        """
        read = f"the model reads at most {self.texts.context_length} tokens"
        return refused(
            f"the prompt is too long: {given}; {read} and needs room to write: shorten it",
            param=param,
            code="context_length_exceeded",
        )


@dataclass(frozen=True)
class ModelSummary:
    """What is said of a model when the server starts. parameters: their number. context_length: in tokens."""

    name: str
    parameters: int
    context_length: int

    @classmethod
    def of(cls, model: ServedModel) -> "ModelSummary":
        """Of a loaded model."""
        return cls(model.name, model.texts.model.num_parameters(), model.texts.context_length)


class Models:
    """All models of a server and their adapters; the first is the one that its page begins with.

    Raises UsageError for none, and for two of one name.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        if not models or len(self._models) < len(models):
            raise UsageError(
                "every model and adapter needs a name of its own, and there must be a model: name them with --alias"
            )
        self.engines = list(dict.fromkeys(model.served for model in models))

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


def served_models(name: str, engine: Engine, load: Callable[[], Engine] | None = None) -> list[ServedModel]:
    """A model by this name and its adapters by theirs. load: makes the engine again, so that it can be unloaded."""
    served = ServedEngine(name, engine, load)
    return [ServedModel(name, served), *(ServedModel(adapter, served, adapter) for adapter in engine.texts.adapters)]


def short_name(name: str) -> str:
    """What a model is called that was loaded from a folder, a file or the hub: org/name, or the file's own name."""
    path = named_path(name)
    return (path.stem if path.suffix == ".gguf" else path.resolve().name) if path.exists() else name
