"""Texts that are to stay as they are; `make golden` writes them anew, and git shows what that changed."""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from llamita.cli.main import VERBS, main
from llamita.loader import load

FOLDER = Path(__file__).parent


def help_of(*words: str) -> Callable[[], str]:
    """What `llamita ... --help` prints on a terminal of 100 columns."""

    def text() -> str:
        columns = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = "100"
        try:
            with redirect_stdout(StringIO()) as printed:
                assert main([*words, "--help"]) == 0
        finally:
            os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
        return printed.getvalue()

    return text


def greedy() -> str:
    """What cria writes without chance, on every machine: with kernels, in its own bf16."""
    llm = load(device="cpu")
    prompts = ("Once upon a time", "Mia had a red kite.")
    texts = [f"{prompt}{llm.generate(prompt, max_tokens=60, temperature=0).text}" for prompt in prompts]
    answer = llm.chat([{"role": "user", "content": "What is 7 + 5?"}], temperature=0).text
    return "\n\n".join([*texts, answer]) + "\n"


# File name -> what writes its content.
RECORDS: dict[str, Callable[[], str]] = {
    "help.txt": help_of(),
    **{f"help_{verb}.txt": help_of(verb) for verb in VERBS},
    "cria.txt": greedy,
}


def write() -> None:
    """Write every record anew."""
    for name, text in RECORDS.items():
        (FOLDER / name).write_text(text(), encoding="utf-8")
