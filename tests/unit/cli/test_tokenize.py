"""llamita tokenize shows the tokens of a text."""

import json

from llamita.checkpoint.auto import AutoTokenizer
from tests.unit.cli.conftest import Run


def test_the_tokens_of_a_text(run: Run) -> None:
    words = ("tokenize", "-m", "cria", "Once upon <|end|>")
    tokenizer = AutoTokenizer.from_pretrained("cria")
    ids = tokenizer.encode("Once upon <|end|>")
    assert run(*words, "--ids").out == " ".join(map(str, ids)) + "\n"
    assert run(*words, "--count").out == f"{len(ids)}\n"
    shown = json.loads(run(*words, "--json").out)
    assert shown["ids"] == ids and "".join(shown["tokens"]) == "<|begin_of_text|>Once upon <|end|>"
    table = run(*words)
    assert all(f"{one}" in table.out for one in ids) and f"{len(ids)} tokens, 17 characters" in table.err
    assert run(*words, "-q").err == ""


def test_text_that_is_piped_in_and_control_tokens(run: Run) -> None:
    end = AutoTokenizer.from_pretrained("cria").eos_token_id
    name = AutoTokenizer.from_pretrained("cria").id_to_token(end or 0)
    plain = run("tokenize", "-m", "cria", "--ids", stdin=f"Hi{name}").out.split()
    assert str(end) not in plain
    assert run("tokenize", "-m", "cria", "--ids", "--special", stdin=f"Hi{name}\n").out.split()[-1] == str(end)


def test_what_is_wrong(run: Run) -> None:
    assert run("tokenize", " ").code == 2
    assert run("tokenize", "--ids", "--json", "a").code == 2
    assert run("tokenize", "-m", "nowhere", "a").code == 3
