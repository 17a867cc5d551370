"""The corpus: an endless stream of rows, each a function of the recipe's seed and its own index alone.

Nothing is stored, so training resumes exactly from a step number and the text can be read again (`rows`) to compare.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from tokenizers import Tokenizer

from llamita.data.documents import IGNORED
from recipes.cria import chats, tasks
from recipes.cria.functions import functions
from recipes.cria.openings import opening
from recipes.cria.plain import event, plain
from recipes.cria.prompts import holds_prompt
from recipes.cria.stories import story
from recipes.cria.tokens import BOS, END, EOT, HEADER, HEADER_END


class Segment(NamedTuple):
    """A piece of a document, and whether the model learns to write it (a user's words are only read)."""

    text: str
    is_learned: bool


Document = list[Segment]


class Row(NamedTuple):
    """Tokens, the token to write after each, or IGNORED, and the number of the document each belongs to."""

    inputs: list[int]
    targets: list[int]
    documents: list[int]


def render_chat(messages: list[chats.Message], tools: tuple[tasks.Tool, ...] = ()) -> Document:
    """A conversation as `chat_template.jinja` renders it; only the assistant's words are learned."""
    if tools:
        system = [content for role, content in messages if role == "system"]
        listed = "\n".join(f"{tool.name}({tool.parameter}): {tool.purpose}" for tool in tools)
        others = [message for message in messages if message[0] != "system"]
        messages = [("system", "\n\n".join([*system, f"You can call these tools:\n{listed}"])), *others]
    segments = [Segment(BOS, True)]
    for role, content in messages:
        segments.append(Segment(f"{HEADER}{role}{HEADER_END}\n\n", False))
        segments.append(Segment(f"{content}{EOT}", role == "assistant"))
    return segments


def _text(text: str) -> Document:
    return [Segment(f"{BOS}{text}{END}", True)]


def _task(task: str, rng: Random, held_out: bool) -> Document:
    """Several cases of one task: mostly in a conversation, sums also as plain lines."""
    if task == "tool call":
        case = tasks.draw(task, rng, held_out=held_out)
        return render_chat(chats.called_tool(case, rng), case.tools)
    cases = [tasks.draw(task, rng, held_out=held_out) for _ in range(1 if task == "name" else rng.randint(2, 5))]
    if task in ("add", "subtract") and rng.random() < 0.35:
        return _text("\n".join(case.answer for case in cases))
    return render_chat([*chats.a_system(rng), *chats.solved(cases)])


class Corpus:
    """The text of a recipe: `mix` says how often a document of each kind is drawn."""

    def __init__(self, mix: dict[str, float], *, seed: int, held_out: bool = False) -> None:
        self.seed, self.held_out = seed, held_out
        self._kinds, self._weights = list(mix), list(mix.values())
        self._writers: dict[str, Callable[[Random], Document]] = {
            "story": lambda rng: _text(story(rng)),
            "told story": lambda rng: render_chat(chats.told_story(rng)),
            "small talk": lambda rng: render_chat(chats.small_talk(rng)),
            "plain": lambda rng: _text(plain(rng)),
            "event": lambda rng: _text(event(rng)),
            "everyday": lambda rng: render_chat(chats.everyday(rng)),
            "asks": lambda rng: render_chat(chats.asked(rng)),
            "opening": lambda rng: _text(opening(rng)),
            "request": lambda rng: render_chat(chats.requested(rng)),
            "functions": lambda rng: _text(functions(rng)),
        }

    def document(self, kind: str, rng: Random) -> Document:
        """One document of a kind, that holds none of the prompts of prompts.toml."""
        write = self._writers.get(kind) or (lambda rng: _task(kind, rng, self.held_out))
        while True:
            document = write(rng)
            if not holds_prompt("".join(segment.text for segment in document)):
                return document

    def stream(self, key: str) -> Iterator[Document]:
        """Endless documents of the mix; the key names the stream."""
        rng = Random(f"{self.seed}/{'held out' if self.held_out else 'train'}/{key}")
        while True:
            yield self.document(rng.choices(self._kinds, self._weights)[0], rng)

    def row(self, index: int, tokenizer: Tokenizer, *, length: int) -> Row:
        """One row of `length` tokens: whole documents one after another, the last cut off."""
        inputs, targets, documents = list[int](), list[int](), list[int]()
        for number, document in enumerate(self.stream(str(index))):
            tokens, labels = list[int](), list[int]()
            for segment in document:
                ids = tokenizer.encode(segment.text, add_special_tokens=False).ids
                tokens += ids
                labels += ids if segment.is_learned else [IGNORED] * len(ids)
            inputs += tokens[:-1]
            targets += labels[1:]
            documents += [number] * (len(tokens) - 1)
            if len(inputs) >= length:
                break
        return Row(inputs[:length], targets[:length], documents[:length])
