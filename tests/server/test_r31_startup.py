"""R31: what keeps a server from starting is one sentence and an exit code."""

import json
import math
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import serve
from llamita.cli.main import main
from llamita.errors import UsageError
from llamita.server import log
from llamita.server.listener import bind
from llamita.server.run import Server

SMALLER = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


@pytest.fixture(autouse=True)
def never_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts though it must not ends the test rather than wait for clients."""
    monkeypatch.setattr(Server, "listen", lambda *_: 99)
    monkeypatch.setattr(log, "set_up", lambda *_, **__: None)  # the test process keeps its own


def config(**fields: Any) -> Callable[[Path], None]:
    """Change fields of a folder's config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def without(name: str) -> Callable[[Path], None]:
    """Remove a file of a folder."""
    return lambda folder: (folder / name).unlink()


def with_content(name: str, content: str) -> Callable[[Path], None]:
    """Write another content into a file of a folder."""
    return lambda folder: (folder / name).write_text(content) and None


def truncate(folder: Path) -> None:
    """Leave the end of the weights out."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


# What is wrong with a folder, the exit code, and what the sentence names.
BROKEN: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "empty": (lambda folder: shutil.rmtree(folder) or folder.mkdir(), 3, "has no config.json"),
    "no weights": (without("model.safetensors"), 3, "no weights"),
    "no tokenizer": (without("tokenizer.json"), 3, "no tokenizer.json"),
    "no JSON": (with_content("config.json", "{"), 1, "config.json"),
    "a list": (with_content("config.json", "[]"), 1, "config.json holds a list"),
    "a broken tokenizer": (with_content("tokenizer.json", "{"), 1, "tokenizer.json"),
    "an unknown family": (config(model_type="mamba", architectures=["MambaForCausalLM"]), 6, "'mamba'"),
    "an impossible number": (config(rms_norm_eps=math.nan), 2, "rms_norm_eps"),
    "another shape": (config(hidden_size=128), 1, "does not fit its config.json"),
    "more tokens than the model": (config(**SMALLER), 1, "only 100 embeddings"),
    "truncated weights": (truncate, 1, "truncated"),
}


@pytest.fixture
def forbidden(small_path: Path, tmp_path: Path) -> Path:
    """A folder whose config its owner alone could make readable."""
    folder = Path(shutil.copytree(small_path, tmp_path / "forbidden"))
    (folder / "config.json").chmod(0)
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
        ("-m /no/such/model -m cria --alias a --alias a", 2, "two --alias are the same"),
        ("--host 203.0.113.7", 2, "203.0.113.7"),
        ("--host no.such.host.invalid", 2, "no.such.host.invalid"),
        (f"--host {'x' * 300}", 2, "no name of a machine"),
        ("--admin-key ''", 2, "an API key has 1 to"),
        (f"--api-key-file {'x' * 300}", 1, "file name too long"),
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


@pytest.mark.parametrize(
    ("words", "is_warned"),
    [
        ("--host 0.0.0.0", True),
        ("--host 0.0.0.0 -q", False),
        ("--host 0.0.0.0 --api-key k", False),
        ("--host localhost", False),
    ],
)
def test_r31_an_open_address_without_a_key_is_warned_of(
    words: str, is_warned: bool, small_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", "-m", str(small_path), *words.split()]) == 0
    assert ("without a key, all who reach this machine can use the server" in capsys.readouterr().err) is is_warned


@pytest.mark.parametrize(
    ("host", "bound", "address"),
    [
        ("127.1", "127.0.0.1", "http://127.0.0.1:9"),
        ("0", "0.0.0.0", "http://127.0.0.1:9"),
        ("*", "0.0.0.0", "http://127.0.0.1:9"),
        ("::", "::", "http://[::1]:9"),
        ("fe80::a", "fe80::a", "http://[fe80::a]:9"),
        ("localhost", "127.0.0.1", "http://localhost:9"),
    ],
)
def test_r31_the_address_that_is_shown_can_be_asked(host: str, bound: str, address: str) -> None:
    assert serve._address(host, bound, 9) == address


def test_r31_the_line_for_curl_is_one_that_a_shell_takes() -> None:
    lines = serve._lines("http://a", "http://a/", 'it\'s "one"', "none", has_messages=True)
    curl = next(line for line in lines.splitlines() if line.startswith("curl"))
    assert json.loads(shlex.split(curl)[-1])["model"] == 'it\'s "one"'


@pytest.mark.parametrize("is_found", [True, False])
def test_r31_the_page_is_opened_and_a_missing_browser_is_said(
    is_found: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda page: opened.append(page) or is_found)
    serve._open("http://a/")
    assert opened == ["http://a/"]
    assert ("no browser was found here: open http://a/" in capsys.readouterr().err) is not is_found


@pytest.mark.parametrize("name", BROKEN)
def test_r31_a_broken_model_is_one_sentence(
    name: str, small_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, code, says = BROKEN[name]
    folder = Path(shutil.copytree(small_path, tmp_path / "broken"))
    spoil(folder)
    found = main(["serve", "--port", "0", "-m", str(folder)])
    printed = said(capsys)
    assert (found, says in printed) == (code, True), printed
    assert "Traceback" not in printed


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


@pytest.fixture
def nobody(small_path: Path) -> Iterator[None]:
    """No rights but those that everybody has: root may read everything."""
    main(["serve", "-q", "--port", "0", "-m", str(small_path)])  # imports what Python's own folder may not let it later
    before = os.geteuid()
    if not before:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_r31_a_folder_that_may_not_be_read_is_one_sentence(
    forbidden: Path, nobody: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", "-m", str(forbidden)]) == 4
    printed = said(capsys)
    assert str(forbidden) in printed
    assert "permission denied" in printed
