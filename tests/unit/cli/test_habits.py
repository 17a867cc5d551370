"""What users of other programs type is answered with what it is called here."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llamita.cli import arguments, finetune, habits, main, names, serve
from llamita.errors import NotFoundError
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_errors import one_sentence


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("generate --temp 0.5", "write --temperature"),
        ("generate --temp=0.5", "write --temperature"),
        ("generate --n-predict 5", "write --max-tokens"),
        ("generate --max_new_tokens 5", "write --max-tokens"),
        ("generate --top_k 5", "write --top-k"),
        ("generate -ngl 99", "--device cuda"),
        ("generate -c 4096", "leave it out"),
        ("chat --ctx-size 4096", "leave it out"),
        ("generate -f prompt.txt", "llamita generate < FILE"),
        ("generate -o story.txt", "> FILE"),
        ("generate -hf org/name", "write --model"),
        ("generate --num-beams 4", "model.generate"),
        ("generate --trust-remote-code", "no code of a checkpoint is ever run"),
        ("chat -sys hello", "write --system"),
        ("generate -tb 4", "write --threads"),
        ("generate --load-in-8bit", "write --quantize"),
        ("generate --verbose", "write --stats"),
        ("generate --cpu", "write --device cpu"),
        ("generate --thread 2", "did you mean --threads?"),
        ("run llama3", "llamita chat -m MODEL"),
        ("pull org/name", "-m org/name fetches"),
        ("list", "hf cache"),
        ("server", "write llamita serve"),
        ("serve --ctx-size 4096", "write --max-model-len"),
        ("serve --parallel 4", "write --max-num-seqs"),
        ("serve --tensor-parallel-size 2", "write --tp"),
        ("serve --enable-auto-tool-choice", "tool calls are always read"),
        ("serve --lora-modules a=b", "write --adapter"),
        ("serve -ctk q8_0", "dtype of the model"),
        ("finetune --learning_rate 1e-4", "write --lr"),
        ("finetune --batch-size 8", "write --batch-tokens"),
        ("finetune --max-steps 8", "write --steps"),
        ("finetune --load-in-4bit", "write --method qlora"),
        ("finetune --dataset a.jsonl", "llamita finetune data.jsonl"),
        ("train --num-train-epochs 3", "--minutes or --steps"),
        ("generate --mirostat 2", "llm.model.generate"),
        ("convert --outfile x.gguf", "write --output"),
        ("quantize --type q4_0", "write --to"),
        ("verify --fast", "write --quick"),
        ("info", "write llamita show"),
        ("benchmark", "write llamita bench"),
    ],
)
def test_habits_are_answered(run: Run, words: str, says: str) -> None:
    outcome = run(*words.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err and one_sentence(outcome.err), outcome.err
    assert says.startswith("did you mean") or "did you mean" not in outcome.err


def test_what_nobody_means_is_not_guessed(run: Run) -> None:
    for name in ("--zebra", "--mirostat", "--keep-alive"):
        assert "did you mean" not in run("generate", name).err


def test_no_habit_hides_an_option_of_ours() -> None:
    for verb in main.VERBS:
        parser = arguments.Parser(verb, verb)
        importlib.import_module(f"llamita.cli.{verb}").add_arguments(parser)
        for option in parser.options:
            assert parser._look_for_habits([option]) is None
    every = {option for theirs in habits.SAME.values() for option in theirs}
    assert len(every) > 60
    assert not set(main.VERBS) & {name for theirs in habits.VERBS.values() for name in theirs}


def test_help_and_version_are_verbs_too(run: Run) -> None:
    assert run("help") == run("--help")
    assert run("help", "generate") == run("generate", "--help")
    assert run("version") == run("--version")
    assert run("help", "nothing").code == 2


@pytest.mark.parametrize("verb", ["generate", "chat", "show", "verify", "bench", "eval"])
def test_every_value_has_its_default_in_the_help(verb: str) -> None:
    parser = arguments.Parser(verb, verb)
    importlib.import_module(f"llamita.cli.{verb}").add_arguments(parser)
    shown = " ".join(parser.format_help().split())
    grouped = {a for group in parser._action_groups if "default" in (group.title or "") for a in group._group_actions}
    for action in parser._actions:
        if action.nargs != 0 and action.help != "the same, as an option" and action not in grouped:
            assert "default" in (action.help or "") or f"(default: {action.default})" in shown, action.dest


@pytest.mark.usefixtures("threads")
def test_threads_are_torchs_and_a_warm_number_is_noticed(run: Run) -> None:
    outcome = run("generate", "a", "-n", "2", "-t", "8", "--threads", "1")
    assert torch.get_num_threads() == 1
    assert outcome.code == 0 and "the number of threads is --threads" in outcome.err
    assert "the seed is --seed" in run("generate", "a", "-n", "2", "-s", "42").err
    assert run("generate", "a", "-n", "2", "-t", "1", "--threads", "1").err == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("https://huggingface.co/org/name", "org/name"),
        ("https://huggingface.co/org/name/", "org/name"),
        ("https://huggingface.co/org/name/tree/main", "org/name"),
        ("http://hf.co/org/name?library=x", "org/name"),
        ("huggingface.co/org/name", "org/name"),
        ("hf.co/org/name:Q4_K_M", "org/name:Q4_K_M"),
        ("hf://org/name", "org/name"),
        ("https://huggingface.co/org/name/blob/main/a-Q4.gguf", "org/name:a-Q4.gguf"),
        ("https://huggingface.co/org/name/resolve/main/sub/a.gguf?download=true", "org/name:a.gguf"),
        ("org/name", "org/name"),
        ("org/name:Q4_K_M", "org/name:Q4_K_M"),
        ("cria", "cria"),
        ("small", "small.gguf"),
        ("llama3.2:1b", "names of Ollama are not known here"),
        ("library/llama3:8b", "names of Ollama are not known here"),
        ("https://example.com/org/name", "is not on the hub"),
        ("https://huggingface.co/org", "is no address of a model"),
        ("https://huggingface.co/org/name/tree/dev", "llamita.load(name, revision=...)"),
        ("z" * 5000, "z" * 5000),
    ],
    ids=lambda text: text[:40],
)
def test_names_of_models(name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.gguf").touch()
    if " " in meant or "=" in meant:
        with pytest.raises(NotFoundError) as told:
            names.understood(name)
        assert meant in str(told.value)
    else:
        assert names.understood(name) == meant
    Path(name[:40].replace("/", "_")).touch()
    assert names.understood(name[:40].replace("/", "_")) == name[:40].replace("/", "_")  # what lies here comes first


def test_a_model_where_a_text_belongs(run: Run, small_path: Path) -> None:
    for words in (["generate", str(small_path)], ["chat", str(small_path)], [str(small_path)]):
        outcome = run(*words)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"-m {str(small_path)[:40]}" in outcome.err


def test_a_chat_begins_with_the_message_given(run: Run) -> None:
    flags = ("-n", "8", "-t", "0")
    assert run("chat", "Hi", *flags).out == run("chat", *flags, stdin="Hi\n").out
    assert run("chat", "Hi", *flags, stdin="And you?\n").out == run("chat", *flags, stdin="Hi\nAnd you?\n").out
    assert run("chat", " ", *flags).code == 2


def test_a_text_that_is_a_models_name_is_asked_about(run: Run) -> None:
    flags = ("-n", "2", "-t", "0")
    assert "if it is a model, write -m org/Llama-1B" in run("generate", "org/Llama-1B", *flags).err
    assert run("generate", "km/h or miles/h", *flags).err == run("generate", "org/Llama-1B", *flags, "-q").err == ""


def test_serve_takes_models_as_words_too(run: Run) -> None:
    parser = arguments.Parser("serve", "serve")
    serve.add_arguments(parser)
    environment = {"LLAMITA_MODEL": "other"}
    for words in (["a", "b", "--port", "3"], ["-m", "a", "-m", "b"]):
        assert parser.read(words, environment).model == ["a", "b"]  # what the environment says is overruled
    assert parser.read([], environment).model == ["other"]
    assert "model is given twice" in run("serve", "a", "-m", "b").err


def test_the_help_of_finetune_has_its_own_defaults() -> None:
    for name, value in finetune.DEFAULTS.items():
        said = f"{value:g}" if isinstance(value, float) else str(value)
        assert re.search(rf"default: {said}\b|{said} \(default\)", finetune.TEXTS[name]), name
    assert {name for said in finetune.METHODS.values() for name in said} <= {*finetune.TEXTS, "task"}
