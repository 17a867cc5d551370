"""What a chat request means for the engine: prompt, options, and the form that its answer must have."""

from collections.abc import Sequence

from llamita.generation.text_options import TextOptions
from llamita.server.conversation import Tool, conversation_ids, names_of, set_form
from llamita.server.models import ServedModel
from llamita.server.openai.schemas import ChatRequest
from llamita.server.sampling_request import seeded
from llamita.server.submission import Item


def chat_items(model: ServedModel, asked: ChatRequest) -> list[Item]:
    """The texts to write, n of one prompt. Raises RequestError and UsageError."""
    tools, rendering = asked.callable_tools, asked.rendering
    messages = [message.for_template() for message in asked.messages]
    ids = conversation_ids(model, messages, tools, rendering)
    options = chat_options(model, asked, tools)
    names = names_of(tools)
    return [Item(ids, seeded(options, number), rendering.continues, names) for number in range(asked.n or 1)]


def chat_options(model: ServedModel, asked: ChatRequest, tools: Sequence[Tool]) -> TextOptions:
    """The engine's options. Raises RequestError for two forms of one answer."""
    options = asked.sampling_options(model.texts.model.config.vocab_size)
    most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    if most is not None:
        options["max_tokens"] = most
    if asked.logprobs:
        options["logprobs"] = asked.top_logprobs or 0
    schema = None if asked.response_format is None else asked.response_format.json_schema_option
    set_form(options, tools, call=asked.forced_call, schema=schema)
    return options
