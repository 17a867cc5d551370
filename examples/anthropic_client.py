"""Talk to a llamita server with Anthropic's own client: start `llamita serve` first, or name another address."""

import os
import sys

from anthropic import Anthropic

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"


def main() -> None:
    """Stream an answer, then let the model call a tool."""
    client = Anthropic(base_url=ADDRESS, api_key=os.environ.get("LLAMITA_API_KEY", "none"))
    model = client.models.list().data[0].id
    draws = {"temperature": 0.7, "seed": 1}  # the same seed, the same answer

    with client.messages.stream(
        model=model, max_tokens=200, messages=[{"role": "user", "content": "Tell me a story."}], extra_body=draws
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    usage = stream.get_final_message().usage
    print(f"\n\n{usage.input_tokens} tokens read, {usage.output_tokens} written")

    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    message = client.messages.create(
        model=model,
        max_tokens=60,
        messages=[{"role": "user", "content": "What is the weather in Lima?"}],
        tools=[{"name": "get_weather", "description": "The weather of a city", "input_schema": city}],
        tool_choice={"type": "any"},
    )
    print(*(f"{block.name}({block.input})" for block in message.content if block.type == "tool_use"))


if __name__ == "__main__":
    main()
