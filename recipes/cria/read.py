"""Answers to the prompts of prompts.toml, to be read and scored: `python -m recipes.cria.read [MODEL]`."""

import argparse

import llamita
from recipes.cria.prompts import read_prompts

TOKENS = 200


def main() -> None:
    """Print the rule, then every prompt with its answer; an answer that did not end by itself is marked."""
    parser = argparse.ArgumentParser(description="Print cria's answers to 60 prompts that it was not trained on.")
    parser.add_argument("model", nargs="?", default="cria")
    llm = llamita.load(parser.parse_args().model)
    prompts = read_prompts()
    print(prompts["rule"])
    for number, prompt in enumerate([*prompts["text"], *prompts["known_text"]], 1):
        answer = llm.generate(prompt, max_tokens=TOKENS, seed=0)
        _show(f"text {number}", f"{prompt}⟶{answer.text}", answer.finish_reason)
    for number, prompt in enumerate([*prompts["chat"], *prompts["known_chat"]], 1):
        answer = llm.chat([{"role": "user", "content": prompt}], max_tokens=TOKENS, seed=0)
        _show(f"chat {number}", f"{prompt}\n⟶{answer.text}", answer.finish_reason)


def _show(name: str, text: str, reason: str | None) -> None:
    print(f"\n[{name}]{'' if reason == 'stop' else ' (did not end)'} {text}")


if __name__ == "__main__":
    main()
