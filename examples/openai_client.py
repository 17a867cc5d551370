"""Talk to a llamita server with OpenAI's own client: start `llamita serve` first, or name another address."""

import os
import sys

import openai

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
client = openai.OpenAI(base_url=f"{address}/v1", api_key=os.environ.get("LLAMITA_API_KEY", "none"))
model = client.models.list().data[0].id

answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}], seed=1)
print(answer.choices[0].message.content, answer.usage)

for chunk in client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=40, stream=True
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

cities = {"type": "object", "properties": {"city": {"enum": ["Lima", "Oslo"]}}, "required": ["city"]}
called = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is the weather in Lima?"}],
    tools=[{"type": "function", "function": {"name": "weather", "parameters": cities}}],
    tool_choice="required",
)
print(called.choices[0].message.tool_calls)

story = client.responses.create(model=model, input="Tell me a story.", max_output_tokens=20)
print(story.output_text)

vectors = client.embeddings.create(model=model, input=["a llama", "a car"])
print(len(vectors.data), "vectors of", len(vectors.data[0].embedding))
