"""Whatever is wrong is said in one sentence, with the right exit code, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from llamita.cli import errors
from tests.small import save_small_model
from tests.unit.cli.conftest import Run
from tests.zygote import Zygote


def one_sentence(err: str) -> bool:
    return err.startswith("llamita: ") and err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["generate", ""], 2, "the prompt is empty"),
        (["generate", " \n"], 2, "the prompt is empty"),
        (["generate", "x" * 200], 2, "201 tokens, the model reads at most 128"),
        (["generate", "a", "--dtype", "float33"], 2, "dtype 'float33' is unknown"),
        (["generate", "a", "--device", "teapot"], 2, "device 'teapot' is not available"),
        (["generate", "a", "--attn", "magic"], 6, "'magic' is not supported"),
        (["generate", "a", "-m", "no/such/folder"], 3, "no/such/folder"),
        (["generate", "a", "-m", "nobody/nothing", "--offline"], 3, "nobody/nothing"),
        (["show", "./missing"], 3, "./missing"),
        (["generate", "a", "-n", "0"], 2, "max_tokens is 0"),
        (["generate", "a", "-n", "many"], 2, "-n/--max-tokens is 'many', which is no whole number: llamita generate"),
        (["generate", "a", "-t", "warm"], 2, "-t/--temperature is 'warm', which is no number: llamita generate"),
        (["generate", "a", "-t", "-1"], 2, "temperature is -1"),
        (["generate", "a", "--top-p", "7"], 2, "top_p is 7"),
        (["generate", "a", "--stop", ""], 2, "a stop string is empty"),
        (["generate", "a", "b"], 2, "put quotes around"),
        (["generate", "a", "--tempratur", "1"], 2, "did you mean --temperature?"),
        (["generat", "a"], 2, "did you mean generate?"),
        (["verison"], 2, "did you mean version?"),
        (["show", "-t", "0.5"], 2, "llamita show does nothing with -t: leave it out, it is for generate and chat"),
        (["show", "--temp", "1"], 2, "show does nothing with --temp"),
        (["show", "--device", "cpu"], 2, "show does nothing with --device"),
        (["verify", "--stop", "x"], 2, "verify does nothing with --stop"),
        (["verify", "--dtype", "float32"], 2, "verify does nothing with --dtype"),
        (["convert", "--kernels", "off"], 2, "convert does nothing with --kernels"),
        (["quantize", "--seed", "1"], 2, "quantize does nothing with --seed"),
        (["quantize", "--quantize", "q8_0"], 2, "there is no option --quantize: write --to"),
        (["chat", "--logprobs", "1"], 2, "chat does nothing with --logprobs: leave it out, it is for generate"),
        (["bench", "load", "--tokens", "5"], 2, "bench load does nothing with --tokens"),
        (["bench", "roofline", "--formats", "bf16"], 2, "bench roofline does nothing with --formats"),
        (["bench", "decode", "--formats", "bf16", "--batch", "2"], 2, "does nothing with --batch"),
        (["generate", "a", "-n", "-1"], 2, "-n is -1: leave it out"),
        (["generate", "a", "-s", "b", "--heal"], 2, "leave one of them out"),
        (["generate", "a", "--threads", "0"], 2, "--threads is 0"),
        (["-q", "chat"], 2, "write the verb first, llamita chat ..."),
        (["generate", "a", "-n", "9" * 5000], 2, "which is no whole number"),
        (["generate", "a", "--" + "x" * 5000], 2, "there is no option --xxx"),
        (["x" * 5000], 2, "there is no verb xxx"),
        (["generate", "a", "y" * 5000], 2, "is one word too many"),
        (["generate", "a", "-m", "z" * 5000], 1, "cannot read zzz"),
        (["generate", "a", "--dtype", "f" * 5000], 2, "dtype 'ffff"),
        (["generate", "a", "--attn", "g" * 5000], 6, "'ggg"),
        (["generate", "a", "--device", "h" * 5000], 2, "device 'hhh"),
        (["generate", "a", "--json-schema", "i" * 5000], 2, "iii"),
        (["bench", "prefill", "--shape", "j" * 5000], 2, "jjj"),
        (["generate", "a\udcff"], 2, "not UTF-8"),
        (["generate", "a", "--threads", "100000"], 2, "--threads is 100000: it must be at most 4096"),
        (["generate", "a", "--threads", str(10**30)], 2, "--threads is 1000"),
        (["verify", "--threads", "100000"], 2, "--threads is 100000"),
        (["quantize", "--threads", "100000"], 2, "--threads is 100000"),
        (["bench", "decode", "--threads", "100000"], 2, "--threads is 100000"),
        (["generate", "a", "--device", "meta"], 2, "device 'meta' holds no weights"),
        (["generate", "a", "--choice", "\udcff"], 2, "the grammar is not UTF-8 text"),
        (["generate", "a", "--regex", "\udcff"], 2, "the regex is not UTF-8 text"),
        (["generate", "a", "--json-schema", ""], 2, "is empty: name a file"),
        (["generate", "a", "-m", "~nobody-here/model"], 3, "no folder '~nobody-here/model'"),
        (["convert", "-o", "~nobody-here/x.gguf"], 3, "there is no folder ~nobody-here"),
        (["generate", "a", "-p", "b"], 2, "prompt is given twice, as a word and by its option"),
        (["show", "a", "-m", "b"], 2, "model is given twice"),
        (["convert", "a", "b.gguf", "c"], 2, "'c' is one word too many: llamita convert --help shows what fits"),
        (["chat", "hello", "-n", "0"], 2, "max_tokens is 0"),
        (["chat", "hello", "-t", "-1"], 2, "temperature is -1"),
        (["chat", "hello", "--stop", ""], 2, "a stop string is empty"),
        (["eval", "--text", "."], 2, "cannot read .: it is a folder, name a file"),
        (["train", "--recipe", "."], 2, "cannot read .: it is a folder, name a file"),
        (["train", "-o", ""], 2, "the output is '': name a folder"),
        (["train", "rewind", "--step", "1", "-o", "-"], 2, "the output is '-': name a folder"),
        (["finetune", "-o", " "], 2, "the output is ' ': name a folder"),
        (["eval", "--tasks", ","], 2, "--tasks is ',': name tasks"),
        (["quantize", "--to", ""], 2, "there is no recipe ''"),
        (["eval", "--task", "add"], 2, "there is no option --task: did you mean --tasks?"),
        (["train", "--step=3", "--recipes", "x"], 2, "there is no option --recipes: did you mean --recipe?"),
        (["eval", "add"], 2, "add is a task, not a model: write llamita eval --tasks add"),
        (["quantize", "Q4_K_M"], 2, "Q4_K_M is a format, not a model: write llamita quantize MODEL --to Q4_K_M"),
        (["generate", "--", "--seed", "-n", "3"], 2, "-n stands after --, where every word is a text"),
        (["convert", "cria", "x.safetensors"], 2, "ends in .safetensors: name a file that ends in .gguf, or a folder"),
        (["convert", "cria", "x.ggu"], 2, "x.ggu ends in .ggu"),
        (["quantize", "--text", "/dev/null"], 2, "/dev/null has no text to measure on"),
    ],
    ids=lambda given: str(given)[:80],
)
def test_wrong_arguments(run: Run, words: list[str], code: int, says: str) -> None:
    outcome = run(*words)
    assert outcome.code == code, outcome.err
    assert says in outcome.err
    assert one_sentence(outcome.err), outcome.err
    assert len(outcome.err) < 400  # what is quoted is cut
    assert outcome.out == ""


@pytest.mark.parametrize(("data", "says"), [(b"caf\xe9", "byte 3 is 0xe9"), (b"", "empty"), (b" \n", "empty")], ids=str)
def test_wrong_stdin(run: Run, data: bytes, says: str) -> None:
    outcome = run("generate", stdin=data)
    assert outcome.code == 2
    assert says in outcome.err
    assert one_sentence(outcome.err)


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def without_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def configured(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def garbled(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"{\xff")  # type: ignore[func-returns-value]


DAMAGE = {
    "no weights": (without("model.safetensors"), 3, "no weights"),
    "no config": (without("config.json"), 3, "config.json"),
    "no tokenizer": (without("tokenizer.json"), 3, "tokenizer.json"),
    "truncated": (truncated, 1, "truncated"),
    "absent shard": (without_shard, 1, "model-00001-of-00002"),
    "heads": (configured(num_key_value_heads=3), 2, "num_key_value_heads 3"),
    "negative": (configured(hidden_size=-5), 2, "hidden_size"),
    "vocabulary": (configured(vocab_size=200, bos_token_id=0, eos_token_id=0, pad_token_id=0), 1, "ids up to 259"),
    "garbled config": (garbled("config.json"), 1, "config.json"),
    "garbled tokenizer": (garbled("tokenizer.json"), 1, "tokenizer.json"),
    "quantized": (configured(quantization_config={"quant_method": "gptq"}), 6, "gptq"),
}


@pytest.mark.parametrize("verb", ["generate", "show"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints(run: Run, tmp_path: Path, kind: str, verb: str) -> None:
    damage, code, says = DAMAGE[kind]
    folder = tmp_path / "model"
    folder.mkdir()
    save_small_model(folder)
    damage(folder)
    before = sorted(folder.iterdir())
    if (verb, kind) == ("show", "quantized"):
        return  # headers can be shown
    outcome = run(verb, "-m", str(folder))
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert says in outcome.err
    assert one_sentence(outcome.err), outcome.err
    assert sorted(folder.iterdir()) == before


def test_an_error_nobody_thought_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a\nb")

    monkeypatch.setattr("llamita.loader.load", broken)
    outcome = run("generate", "a")
    assert outcome.code == 1
    assert outcome.err.startswith("llamita: RuntimeError: a b; ")
    assert one_sentence(outcome.err)
    assert "Traceback" in run("generate", "a", "--debug").err


def test_exit_codes() -> None:
    assert errors.explained(MemoryError()).exit_code == 5
    assert errors.explained(RuntimeError("CUDA out of memory. Tried to allocate")).exit_code == 5
    assert errors.explained(FileNotFoundError(2, "no", "x")).exit_code == 3
    assert errors.explained(PermissionError(13, "no", "x")).exit_code == 4


def test_an_interruption_wrapped_by_a_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("numpy failed to load") from error

    monkeypatch.setattr("llamita.loader.load", interrupted)
    assert run("generate", "a") == (130, "", "")


def started(*words: str, model: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llamita", *words]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"LLAMITA_MODEL": str(model)} | environment,
        # A shell's background jobs, and so the tests started by one, are deaf to Ctrl-C and pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


REQUEST = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "a"}}\n'

# A library that tells when its import begins, and loses every interruption, as torch and numpy do in places.
DEAF = """
import sys, time
while True:
    try:
        print("importing", file=sys.stderr, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("torch", ("generate", "a")),
        ("uvicorn", ("serve", "--port", "0")),
        ("fastapi", ("batch", "in.jsonl", "out.jsonl")),
    ],
)
def test_ctrl_c_while_loading(library: str, words: tuple[str, ...], small_path: Path, tmp_path: Path) -> None:
    (tmp_path / f"{library}.py").write_text(DEAF, encoding="utf-8")
    (tmp_path / "in.jsonl").write_text(REQUEST, encoding="utf-8")
    words = tuple(str(tmp_path / word) if word.endswith("jsonl") else word for word in words)
    process = started(*words, model=small_path, PYTHONPATH=str(tmp_path))
    assert process.stderr is not None
    assert process.stderr.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", "")


def test_ctrl_c_while_writing_and_a_reader_who_leaves(tmp_path: Path, zygote: Zygote) -> None:
    endless = tmp_path / "endless"
    endless.mkdir()
    save_small_model(endless)
    configured(max_position_embeddings=100_000)(endless)
    words = ["generate", "a", "-t", "0", "-m", str(endless)]
    with closing(zygote.open(words)) as process:
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
        assert process.wait(300) == 130
    with closing(zygote.open(words)) as process:
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(300) == 0
