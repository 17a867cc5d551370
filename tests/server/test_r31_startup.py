"""R31: what keeps a server from starting is one sentence and an exit code."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from llamita.cli.main import main
from llamita.errors import UsageError
from llamita.server import log
from llamita.server.run import Server, bind

SMALLER = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


@pytest.fixture(autouse=True)
def never_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts though it must not ends the test rather than wait for clients."""
    monkeypatch.setattr(Server, "listen", lambda *_: 99)
    monkeypatch.setattr(log, "set_up", lambda *_, **__: None)  # the test process keeps its own


@pytest.fixture
def broken(tmp_path: Path, small_path: Path) -> Path:
    """A folder whose config is no JSON."""
    folder = tmp_path / "broken"
    shutil.copytree(small_path, folder)
    (folder / "config.json").write_text("{")
    return folder


@pytest.fixture
def misfit(tmp_path: Path, small_path: Path) -> Path:
    """A folder whose tokenizer has more tokens than its model."""
    folder = tmp_path / "misfit"
    shutil.copytree(small_path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **SMALLER}))
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1, printed.err
    assert printed.err.startswith("llamita: ")
    return printed.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("-m /no/such/model --offline", 3, "/no/such/model"),
        ("--port 70000", 2, "65535"),
        ("--port eighty", 2, "--port"),
        ("--api-key-file /no/such/file", 3, "/no/such/file"),
        ("--api-key-file /", 2, "folder"),
        ("--api-key ''", 2, "API key"),
        ("--max-num-seqs 0", 2, "--max-num-seqs"),
        ("--max-num-queued -1", 2, "--max-num-queued"),
        ("--max-num-batched-tokens 4", 2, "max_num_batched_tokens"),
        ("--kv-blocks 0", 2, "--kv-blocks"),
        ("--max-model-len 0", 2, "--max-model-len"),
        ("--log-level loud", 2, "--log-level"),
        ("--alias a --alias b", 2, "--alias"),
        ("--host 203.0.113.7", 2, "203.0.113.7"),
        ("--host no.such.host.invalid", 2, "no.such.host.invalid"),
        ("-m cria -m cria", 2, "--alias"),
        ("--drain-timeout -1", 2, "--drain-timeout"),
        ("--drain-timeout inf --port 99999", 2, "--port is 99999"),
        ("--max-num-queued inf", 2, "--max-num-queued"),
        ("--adapter one", 2, "--adapter is 'one': give a name and a folder"),
        ("--adapter =folder", 2, "--adapter"),
        ("--adapter one=a --adapter one=b", 2, "--adapter names 'one' twice"),
        ("--adapter one=a -m cria -m cria", 2, "--adapter is of one model"),
        ("--adapter one=/no/such/folder", 3, "/no/such/folder has no adapter_config.json"),
        ("--unload-idle 0", 2, "--unload-idle"),
        ("--unload-idle 5 --replicas 2", 2, "--unload-idle"),
        ("--speculative-tokens -1", 2, "--speculative-tokens"),
        ("--draft-model cria -m cria -m cria", 2, "--draft-model is of one model"),
        ("--draft-model /no/such/draft --offline", 3, "/no/such/draft"),
        ("--temperature 1", 2, "--temperature"),
        ("org/name", 3, "org/name is not in the local cache"),
        ("--kv-blocks 99999999999", 5, "99999999999 blocks of 16 tokens does not fit the memory"),
    ],
)
def test_r31_mistakes_are_one_sentence(words: str, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", *(word.strip("'") for word in words.split())]) == code
    assert says in said(capsys)


def test_r31_a_port_in_use_is_said_and_another_taken_where_none_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
        assert f"port {port} is in use" in said(capsys)
        with bind("127.0.0.1", port, tries=50) as other:
            assert other.getsockname()[1] > port
        with pytest.raises(UsageError, match="in use"):
            bind("127.0.0.1", port)


def test_r31_broken_models_are_one_sentence(broken: Path, misfit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (broken, misfit):
        assert main(["serve", "--port", "0", "-m", str(folder)]) == 1
        assert str(folder) in said(capsys)


def test_r31_an_adapter_named_as_its_model_is_refused(
    capsys: pytest.CaptureFixture[str], small_path: Path, adapter: Path
) -> None:
    words = ["serve", "--port", "0", "-m", str(small_path), "--alias", "one", "--adapter", f"one={adapter}"]
    assert main(words) == 2
    assert "a name of its own" in said(capsys)


def test_r31_a_key_file_without_keys_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"# none\n\n", b"\xff\xfe", b"two words\n"):
        path = tmp_path / "keys.txt"
        path.write_bytes(content)
        assert main(["serve", "--port", "0", "--api-key-file", str(path)]) == 2
        said(capsys)


def test_r31_a_cache_too_small_for_the_least_text_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--kv-blocks", "1", "--max-model-len", "1"]) == 2
    said(capsys)
