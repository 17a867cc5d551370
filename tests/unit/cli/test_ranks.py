"""Under torchrun, the first process speaks and the others are quiet; all together: see tests/distributed."""

from contextlib import AbstractContextManager, nullcontext

import pytest

from llamita.cli import ranks
from llamita.errors import LlamitaError, UsageError


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as torchrun's second one would be, which has not joined the first yet."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")


def test_a_single_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert not ranks.is_other()
    assert ranks.command() == "llamita"
    with ranks.joined("cpu") as mesh:
        assert mesh is None
        print("said")
    assert capsys.readouterr().out == "said\n"
    with pytest.raises(UsageError, match="wrong"), ranks.joined("cpu"):
        raise UsageError("wrong")


def test_another_process_leaves_what_concerns_all_to_the_first(second: None) -> None:
    from llamita.parallel.mesh import Degrees

    assert ranks.is_other()
    assert ranks.command() == "torchrun --nproc-per-node 2 -m llamita"
    with pytest.raises(SystemExit) as left, ranks.joined("cpu", Degrees(tp=3)):
        pass
    assert left.value.code == 0


def test_a_lost_process_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="by peer"), ranks.joined("cpu"):
        raise RuntimeError("Connection closed by peer")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("llamita.parallel.mesh.is_launched", lambda: True)
    monkeypatch.setattr("llamita.parallel.mesh.processes", _no_processes)
    with pytest.raises(LlamitaError, match="process 0 has lost another one"), ranks.joined("cpu"):
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="another reason"), ranks.joined("cpu"):
        raise RuntimeError("another reason")


def _no_processes(*_: object, **__: object) -> AbstractContextManager[None]:
    return nullcontext()
