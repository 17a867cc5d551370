"""What cria can do on unseen cases: `python -m recipes.cria.score` prints the figures of the model card.

Tasks: greedy answers, right only if equal to the last character. Names and 8-grams: stories sampled as the model's
generation_config.json says, each continuing the first words of a story that training never saw.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer

from llamita.data.documents import IGNORED
from llamita.data.loader import take
from llamita.model.llama import LlamaForCausalLM
from llamita.train.loop import autocast
from llamita.train.tasks.token_loss import token_losses
from recipes.cria import chats, tasks, words
from recipes.cria.corpus import Corpus, render_chat
from recipes.cria.recipe import CriaRecipe, read_recipe
from recipes.cria.source import rows_of
from recipes.cria.stories import story
from recipes.cria.tokens import BOS, HEADER, HEADER_END

MEASURED = 64  # rows of held-out text

Writer = Callable[[list[str]], list[str]]  # prompts -> what the model writes behind them

_WORD = re.compile(r"[A-Za-z']+")
_CAPITALISED = re.compile(r"\b[A-Z][a-z]+\b")
_OWN_FRIEND = re.compile(r"\b([A-Z][a-z]+)\b[^.!?\"]*\bfriend \1\b")
_INTRODUCERS = ["named", "called", "friend", "girl", "boy", *words.BEASTS]


def writer(
    model: LlamaForCausalLM, tokenizer: Tokenizer, *, max_new_tokens: int, seed: int | None = None, rows: int = 100
) -> Writer:
    """Write with a model, greedily or, with a seed, sampled: a batch of rows at a time, padded on the left."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy: padding is a state of the object
    tokenizer.enable_padding(direction="left", pad_id=model.config.pad_token_id or 0)

    def write(prompts: list[str]) -> list[str]:
        written: list[str] = []
        for start in range(0, len(prompts), rows):
            encoded = tokenizer.encode_batch(prompts[start : start + rows], add_special_tokens=False)
            ids = torch.tensor([encoding.ids for encoding in encoded])
            mask = torch.tensor([encoding.attention_mask for encoding in encoded])
            seeds = {} if seed is None else {"seed": [seed + start + i for i in range(len(ids))]}
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=seed is not None, **seeds
            )
            written += tokenizer.decode_batch(out[:, ids.shape[1] :].tolist(), skip_special_tokens=True)
        return written

    return write


def question(case: tasks.Case) -> str:
    """The text that asks a case: the conversation up to where the assistant is to speak."""
    turns = chats.solved([case])[:-1]
    segments = render_chat(turns, case.tools)
    return "".join(segment.text for segment in segments) + f"{HEADER}assistant{HEADER_END}\n\n"


def score_task(task: str, write: Writer, *, count: int) -> float:
    """The share of held-out cases of a task that are answered exactly."""
    rng = Random(f"score/{task}")
    cases = [tasks.draw(task, rng, held_out=True) for _ in range(count)]
    answers = write([question(case) for case in cases])
    return sum(answer == case.answer for answer, case in zip(answers, cases, strict=True)) / count


def story_starts(count: int) -> list[str]:
    """The first 12 to 30 words of stories of a stream that training does not read."""
    rng = Random("score/stories")
    starts = []
    for _ in range(count):
        text = story(rng)
        ends = [match.end() for match in re.finditer(r"\S+", text)]
        starts.append(text[: ends[rng.randint(11, 29)]])
    return starts


def ordinary_capitals(count: int = 3000) -> set[str]:
    """Capitalised words that are no names: those with which sentences of the generator's stories begin."""
    rng = Random("score/ordinary")
    found = chain.from_iterable(_CAPITALISED.findall(story(rng)) for _ in range(count))
    return set(found) - set(words.NAMES)


def stray_names(start: str, continuation: str, ordinary: set[str]) -> list[str]:
    """Names of a continuation that neither its prompt holds nor the continuation introduces.

    A name is a capitalised word that does not begin sentences in the generator's stories (`ordinary`). It is
    introduced when the word before its first place says what it is (named, called, friend, girl, boy, fox ...), or
    when the continuation says "Name was a ...", "Name, the ...".
    """
    strays = []
    for name in dict.fromkeys(_CAPITALISED.findall(continuation)):
        known = name in ordinary or re.search(rf"\b{name}\b", start)
        if known or re.search(rf"\b{name}(, the| was an?) ", continuation):
            continue
        before = _WORD.findall((start + continuation)[: len(start) + continuation.index(name)])
        if not before or before[-1] not in _INTRODUCERS:
            strays.append(name)
    return strays


def is_own_friend(text: str) -> bool:
    """Whether someone is their own friend in a sentence: "Clara and her friend Clara"."""
    return _OWN_FRIEND.search(text) is not None


def grams(text: str) -> Iterator[str]:
    """The 8-grams of the words of a text, without case and punctuation."""
    found = [word.lower() for word in _WORD.findall(text)]
    return (" ".join(found[i : i + 8]) for i in range(len(found) - 7))


@torch.no_grad()
def measure(model: LlamaForCausalLM, corpus: Corpus, tokenizer: Tokenizer, *, length: int) -> tuple[float, float]:
    """Nats per token and bits per byte on the first rows of a corpus, of what the model is to write."""
    batch = take(rows_of(corpus, range(MEASURED), tokenizer, length=length), torch.arange(MEASURED))
    with autocast("bf16", model.device):
        nats = sum(token_losses(model, part).item() for part in batch.split(16))
    learned = [row[row != IGNORED].tolist() for row in batch.targets]
    size = sum(len(text.encode()) for text in tokenizer.decode_batch(learned, skip_special_tokens=True))
    return nats / batch.learned, nats / math.log(2) / size


def unseen_grams(texts: Iterable[str], recipe: CriaRecipe, tokenizer: Tokenizer) -> float:
    """The share of the texts' 8-grams that stand nowhere in the training text, which is made again to compare."""
    wanted = {gram: None for text in texts for gram in grams(text)}
    total = len(wanted)
    for index in range(recipe.rows):
        corpus = Corpus(recipe.mix_at(index), seed=recipe.train.seed)
        row = corpus.row(index, tokenizer, length=recipe.train.length)
        for gram in grams(tokenizer.decode(row.inputs, skip_special_tokens=False)):
            wanted.pop(gram, None)
    return len(wanted) / total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Score cria on unseen cases.")
    parser.add_argument("model", type=Path, nargs="?", default=Path("llamita/cria"))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cria.toml"))
    parser.add_argument("--cases", type=int, default=200, help="of each task")
    parser.add_argument("--stories", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="leave out the 8-grams, which need all the training text")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe)
    model = LlamaForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    answer = writer(model, tokenizer, max_new_tokens=60)
    for task in tasks.TASKS:
        show(task, score_task(task, answer, count=arguments.cases))
    starts = story_starts(arguments.stories)
    continuations = writer(model, tokenizer, max_new_tokens=250, seed=0)([BOS + start for start in starts])
    show_stories(starts, continuations)
    for name, mix in {"stories": {"story": 1.0}, "plain texts": {"plain": 1.0}, "all kinds": recipe.mix}.items():
        corpus = Corpus(mix, seed=recipe.train.seed, held_out=True)
        loss, bits = measure(model, corpus, tokenizer, length=recipe.train.length)
        print(f"{f'held-out {name}':<52} {bits:8.3f} bits per byte, {loss:.3f} nats per token", flush=True)
    if not arguments.quick:
        show("8-grams of sampled stories not in the training text", unseen_grams(continuations, recipe, tokenizer))


def show_stories(starts: list[str], continuations: list[str]) -> None:
    """Print what is counted in stories."""
    ordinary, pairs = ordinary_capitals(), list(zip(starts, continuations, strict=True))
    clean = sum(not stray_names(*pair, ordinary) for pair in pairs)
    show("stories whose names are all introduced", clean / len(pairs))
    others = sum(not is_own_friend(start + continuation) for start, continuation in pairs)
    show("stories in which nobody is their own friend", others / len(pairs))


def show(name: str, share: float) -> None:
    """Print one share as a line."""
    print(f"{name:<52} {share:8.1%}", flush=True)


if __name__ == "__main__":
    main()
