"""Texts that are to stay as they are; `make golden` writes them anew, and git shows what that changed."""

import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import llamita
from llamita.cli.main import VERBS, main
from llamita.loader import load

FOLDER = Path(__file__).parent
RECEIPT = Path(llamita.__file__).parent / "cria" / "receipt.json"


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


def receipt() -> str:
    """The receipt of a story of cria's, which `llamita replay` writes again on every machine."""
    prompt = "Once upon a time"
    with load(device="cpu").engine() as engine:
        handle = engine.submit(prompt, max_tokens=256, temperature=0.7, seed=3, logprobs=0)
        handle.result(60)
        receipts = [engine.receipt(handle).to_dict()]
    return json.dumps({"prompt": prompt, "receipts": receipts}, indent=2) + "\n"


# File name -> what writes its content.
RECORDS: dict[str, Callable[[], str]] = {
    "help.txt": help_of(),
    **{f"help_{verb}.txt": help_of(verb) for verb in VERBS},
    "cria.txt": greedy,
}


def write() -> None:
    """Write every record anew."""
    RECEIPT.write_text(receipt(), encoding="utf-8")
    for name, text in RECORDS.items():
        (FOLDER / name).write_text(text(), encoding="utf-8")
