"""What a chat request means for the engine: prompt, options, and the form that its answer must have."""

from typing import Any

from llamita.generation.text_options import TextOptions
from llamita.server.errors import refused
from llamita.server.models import ServedModel
from llamita.server.openai.messages import ToolChoice, text_of, tool_data
from llamita.server.openai.sampling import limited
from llamita.server.openai.schemas import ChatRequest
from llamita.server.submission import Item
from llamita.structured.tool_calls import grammar
from llamita.tokenizer.chat import encode_chat


def chat_items(model: ServedModel, asked: ChatRequest) -> list[Item]:
    """The texts to write, n of one prompt. Raises RequestError and UsageError."""
    ids, names = chat_ids(model, asked)
    options = chat_options(model, asked)
    reads_on = bool(asked.continue_final_message)
    return [Item(ids, seeded(options, number), reads_on, names) for number in range(asked.n or 1)]


def chat_ids(model: ServedModel, asked: ChatRequest) -> tuple[list[int], tuple[str, ...]]:
    """The ids of the conversation, and the names of the tools that may be called."""
    if sum(len(text_of(message.content)) for message in asked.messages) > model.most_prompt_characters:
        raise model.too_long("more characters than fit", "messages")
    tools = [tool_data(tool.function) for tool in asked.tools or ()] if asked.tool_choice != "none" else []
    ids = encode_chat(
        model.texts.tokenizer,
        [message.for_template() for message in asked.messages],
        tools=tools or None,
        continue_final_message=bool(asked.continue_final_message),
    )
    return model.checked_ids(ids, "messages"), tuple(tool["function"]["name"] for tool in tools)


def chat_options(model: ServedModel, asked: ChatRequest) -> TextOptions:
    """The engine's options. Raises RequestError for two forms of one answer."""
    options = asked.sampling_options(model.texts.model.config.vocab_size)
    most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    if most is not None:
        options["max_tokens"] = limited(most, model.texts.context_length)
    if asked.logprobs:
        options["logprobs"] = asked.top_logprobs or 0
    if asked.response_format is not None and (schema := asked.response_format.json_schema_option) is not None:
        options["json_schema"] = schema
    if (tools := forced_tools(asked)) is not None:
        options["grammar"] = grammar(tools)
        if len({"json_schema", "regex", "choice"} & options.keys()) or asked.grammar is not None:
            raise refused("a tool must be called and the answer have another form: ask for one of them", param="tools")
    return options


def forced_tools(asked: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools of which one must be called; None where none must."""
    tools = [tool_data(tool.function) for tool in asked.tools or ()]
    if asked.tool_choice == "required":
        return tools
    if not isinstance(asked.tool_choice, ToolChoice):
        return None
    name = asked.tool_choice.function.name
    chosen = [tool for tool in tools if tool["function"]["name"] == name]
    if not chosen:
        raise refused(f"tool_choice names {name}, which is not among the tools", param="tool_choice")
    return chosen


def seeded(options: TextOptions, number: int) -> TextOptions:
    """The options of one of n texts: a seed of its own, so that they differ and can be had again."""
    seed = options.get("seed")
    return options if not isinstance(seed, int) else {**options, "seed": seed + number}
