"""/v1/messages: a conversation in, its next message out, whole or as it is written; and how many tokens it has."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamita.server.answers import answered, submitted
from llamita.server.anthropic.answer import MessageAnswer
from llamita.server.anthropic.schemas import CountRequest, MessageRequest
from llamita.server.conversation import conversation_ids, names_of, set_form
from llamita.server.conversation_tokens import Rendering
from llamita.server.models import ServedModel
from llamita.server.state import model_of, parsed
from llamita.server.submission import Item


async def create_message(request: Request) -> Response:
    """Answer a conversation."""
    asked = await parsed(request, MessageRequest)
    model = await model_of(request, asked.model)
    submission = await submitted(request, asked, model, lambda: [message_item(model, asked)])
    request_id = request.scope.get("llamita.request_id", "")
    answer = MessageAnswer(model, asked, submission, request_id)
    return await answered(request, submission, answer, is_stream=bool(asked.stream))


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has, without an answer."""
    asked = await parsed(request, CountRequest)
    ids = await asyncio.to_thread(ids_of, await model_of(request, asked.model), asked)
    return JSONResponse({"input_tokens": len(ids)})


def ids_of(model: ServedModel, asked: CountRequest) -> list[int]:
    """The ids of a conversation. Raises RequestError and UsageError."""
    return conversation_ids(model, asked.conversation(), asked.callable_tools, Rendering(continues=asked.continues))


def message_item(model: ServedModel, asked: MessageRequest) -> Item:
    """The text to write. Raises RequestError and UsageError."""
    tools = asked.callable_tools
    options = asked.sampling_options(model.texts.model.config.vocab_size)
    options["max_tokens"] = asked.max_tokens  # every request has one, more than the context often: it ends there
    if asked.stop_sequences:
        options["stop"] = asked.stop_sequences
    form = None if asked.output_config is None else asked.output_config.format
    set_form(options, tools, call=asked.forced_call, schema=None if form is None else form.schema_)
    return Item(ids_of(model, asked), options, reads_on=asked.continues, tools=names_of(tools))
