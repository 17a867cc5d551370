"""The mesh of torchrun's processes: degrees, what does not fit, and a group of one process."""

import socket

import pytest

from llamita.errors import NotFoundError, UsageError
from llamita.parallel import mesh
from llamita.parallel.mesh import DIMS, Degrees, processes


@pytest.mark.parametrize(
    ("degrees", "world_size", "sizes"),
    [
        (Degrees(), 1, (1, 1, 1, 1)),
        (Degrees(), 6, (1, 6, 1, 1)),
        (Degrees(tp=2), 6, (1, 3, 1, 2)),
        (Degrees(dp_shard=1, tp=2, cp=3, pp=5), 30, (5, 1, 3, 2)),
    ],
)
def test_data_parallel_takes_what_is_left(degrees: Degrees, world_size: int, sizes: tuple[int, ...]) -> None:
    assert degrees.sizes(world_size) == sizes


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        (Degrees(tp=2), r"^tp 2 must divide the number of processes, 3: .* --nproc-per-node 2 "),
        (Degrees(dp_shard=2, tp=2), r"dp_shard 2 x tp 2 is 4, which must be the number of processes, 3"),
        (Degrees(dp_shard=1), r"^dp_shard 1 must be the number of processes, 3"),
        (Degrees(cp=0), r"cp is 0: it must be at least 1 process"),
    ],
)
def test_degrees_that_do_not_fit_are_refused(degrees: Degrees, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        degrees.sizes(3)


def test_a_single_process_has_no_mesh_and_several_need_torchrun() -> None:
    with processes() as found:
        assert found is None
        assert (mesh.rank(), mesh.world_size(), mesh.is_first(), mesh.is_distributed()) == (0, 1, True, False)
    refused = pytest.raises(UsageError, match=r"4 processes are asked for, .* torchrun --nproc-per-node 4 -m llamita")
    with refused, processes(Degrees(tp=2, pp=2)):
        pass
    with pytest.raises(UsageError, match="tp is 0"), processes(Degrees(tp=0)):
        pass


def test_a_group_of_one_has_all_dims_and_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    with processes() as found:
        assert found is not None
        assert (found.mesh_dim_names, tuple(found.shape)) == (DIMS, (1, 1, 1, 1))
        assert mesh.is_distributed()
        assert mesh.from_first(lambda: 3) == 3
        with pytest.raises(NotFoundError, match="no file"):
            mesh.from_first(_missing)
    assert not mesh.is_distributed()


def _missing() -> None:
    raise NotFoundError("no file")
