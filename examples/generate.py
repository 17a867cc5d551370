"""Three ways to let a model write: all at once, piece by piece, and in a conversation."""

import llamita

llm = llamita.load()  # the embedded cria; or a folder, or a repository id on the hub
print(llm)

story = llm.generate("Once upon a time", max_tokens=40, temperature=0.7, seed=1)
print(story.text, f"({story.finish_reason} after {story.usage.completion_tokens} tokens)", sep="\n")

for piece in llm.stream("Once upon a time", max_tokens=40, temperature=0.7, seed=2):
    print(piece, end="", flush=True)
print()

print(llm.chat([{"role": "user", "content": "Hello!"}], max_tokens=40))
