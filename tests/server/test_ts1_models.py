"""T-S1 to T-S6: a model's folder can be hostile: nothing of it runs, and what is wrong with it is one sentence."""

import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llamita
from llamita.cli.main import main
from llamita.server import log
from llamita.server.run import Server
from tests.server.serving import Running, serving

STARTED = 99


@pytest.fixture(autouse=True)
def never_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """`llamita serve` ends with STARTED where it would begin to serve."""

    def listen(server: Server, *_: object) -> None:
        for engine in server.state.models.engines:
            engine.close()
        server.exit_code = STARTED

    monkeypatch.setattr(Server, "listen", listen)
    monkeypatch.setattr(log, "set_up", lambda *_, **__: None)  # the test process keeps its own


@pytest.fixture
def folder(tmp_path: Path, small_path: Path) -> Path:
    """A good model that a test spoils."""
    return Path(shutil.copytree(small_path, tmp_path / "model"))


def serve(path: Path) -> int:
    return main(["serve", "--port", "0", "-m", str(path)])


def refusal(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    code, printed = serve(path), capsys.readouterr()
    assert code not in (0, STARTED)
    assert len(printed.err.splitlines()) == 1, printed.err
    return printed.err


class Touching:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_ts1_a_pickled_checkpoint_runs_nothing(
    folder: Path, tmp_path: Path, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.safetensors").unlink()
    trace = tmp_path / "trace"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touching(trace), protocol=protocol))
    assert "pytorch_model.bin" in refusal(capsys, folder)
    assert not trace.exists()


def test_ts2_code_of_a_checkpoint_is_never_imported(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (folder / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    evil = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": evil, "trust_remote_code": True}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": evil}))
    assert serve(folder) == STARTED
    assert not trace.exists()
    assert not any("modeling_evil" in name for name in sys.modules)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def packed(header: object, data: bytes = bytes(8)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**64 - 1) + bytes(100),
        struct.pack("<Q", 200_000_000) + bytes(100),
        packed(b"[" * 100_000, b""),
        packed(b'{"a":1,"a":2}', b""),
        packed({"a": ENTRY, "b": ENTRY}),
        packed({"a": {**ENTRY, "shape": [2**63, 2**63, 2**63]}}),
        packed({"../../etc/passwd": ENTRY, "\x1b[31m": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16)),
    ],
)
def test_ts3_a_hostile_safetensors_file_is_one_sentence(
    folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert refusal(capsys, folder).rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(4000),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(4000),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(4000),
        b"GGUF" + struct.pack("<IQQ", 2**31, 1, 1) + bytes(4000),
        os.urandom(4000),
    ],
)
def test_ts4_a_hostile_gguf_file_is_one_sentence(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert "model.gguf" in refusal(capsys, path)


TEMPLATES = {
    "ts5": [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch TRACE').read() }}",
        "{{ lipsum.__globals__['os'].system('touch TRACE') }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
    ],
    "ts6": [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 9 ** 99 ** 9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
}
CHAT = {"model": "cria", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def templated(small_path: Path) -> Iterator[Running]:
    """A server whose chat template a test replaces."""
    with serving(llamita.load(small_path)) as server:
        yield server


@pytest.mark.parametrize(("name", "template"), [(name, one) for name, all_ in TEMPLATES.items() for one in all_])
def test_ts5_ts6_a_hostile_template_fails_one_request(
    templated: Running, name: str, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, trace = templated.model.texts.tokenizer, tmp_path / name
    with monkeypatch.context() as patched:
        patched.setattr(type(tokenizer), "chat_template", template.replace("TRACE", str(trace)))
        for path in ("/v1/chat/completions", "/v1/messages"):
            answer = templated.post(path, CHAT)
            assert (answer.status_code, "chat template" in answer.json()["error"]["message"]) == (400, True)
    assert not trace.exists()
    assert templated.post("/v1/chat/completions", CHAT).status_code == 200


def test_ts5_ts6_a_template_never_comes_from_a_request(templated: Running) -> None:
    for fields in (
        {"chat_template": "{{ 1 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}", "tokenize": True}},
    ):
        answer = templated.post("/v1/chat/completions", CHAT | fields)
        assert (answer.status_code, "checkpoint's" in answer.json()["error"]["message"]) == (400, True)
