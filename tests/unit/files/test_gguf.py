"""GGUF files: what is written is read again, by us and by ggml-org's own reader, and the other way round."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from llamita.errors import BrokenFileError, UsageError
from llamita.files.gguf import GgufFile
from llamita.files.gguf_split import open_gguf
from llamita.files.gguf_types import STORAGES, Field
from llamita.files.gguf_write import Piece, write_gguf

METADATA = {
    "general.architecture": Field("string", "llama"),
    "an.uint8": Field("uint8", 255),
    "an.int8": Field("int8", -128),
    "a.uint16": Field("uint16", 65535),
    "an.int16": Field("int16", -32768),
    "a.uint32": Field("uint32", 2**32 - 1),
    "an.int32": Field("int32", -(2**31)),
    "a.float32": Field("float32", 0.15625),
    "a.bool": Field("bool", True),
    "a.string": Field("string", "größe ▁ 😀"),
    "a.uint64": Field("uint64", 2**64 - 1),
    "an.int64": Field("int64", -(2**63)),
    "a.float64": Field("float64", 1e300),
    "an.empty": Field("string", ""),
    "strings": Field("string", ["a", "", "Ġthe", "日本"]),
    "floats": Field("float32", [0.5, -3.0]),
    "numbers": Field("int32", [1, -2, 3]),
    "truths": Field("bool", [True, False]),
}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "plain.f32": torch.randn(3, 5, generator=generator),
        "plain.f16": torch.randn(7, generator=generator).half(),
        "plain.bf16": torch.randn(2, 3, 5, generator=generator).bfloat16(),
        "plain.i32": torch.arange(4, dtype=torch.int32),
        "blocks.q8_0": torch.randint(0, 256, (3, 2 * 34), generator=generator, dtype=torch.uint8),
        "blocks.q4_k": torch.randint(0, 256, (5, 3 * 144), generator=generator, dtype=torch.uint8),
    }


def pieces() -> dict[str, Piece]:
    made = {}
    for name, tensor in tensors().items():
        kind = name.partition(".")[2]
        storage = STORAGES[kind]
        last = tensor.shape[-1] // storage.nbytes * storage.block if storage.dtype is None else tensor.shape[-1]
        made[name] = Piece(kind, (*tensor.shape[:-1], last), lambda tensor=tensor: tensor)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "all.gguf"
    write_gguf(path, METADATA, pieces())
    return path


def test_reads_what_it_wrote(path: Path) -> None:
    file = GgufFile(path)
    assert file.metadata == METADATA
    assert list(file.entries) == list(tensors())
    for name, tensor in tensors().items():
        assert torch.equal(file.load(name), tensor)
        assert file.entries[name].shape == pieces()[name].shape


def test_every_storage_is_known_to_ggml_org() -> None:
    sizes = {kind.name.lower(): (kind.value, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {name: (storage.number, storage.block, storage.nbytes) for name, storage in STORAGES.items()}
    assert ours == {name: sizes[name] for name in ours}
    assert sizes.keys() - ours.keys() == {"q8_1"}  # an intermediate of theirs, never in files


def test_ggml_org_reads_it_block_for_block(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    for key, field in METADATA.items():
        assert reader.fields[key].contents() == field.value, key
    assert [tensor.name for tensor in reader.tensors] == list(tensors())
    for theirs in reader.tensors:
        ours = tensors()[theirs.name].contiguous()
        assert theirs.tensor_type.name.lower() == theirs.name.partition(".")[2]
        assert tuple(theirs.shape.tolist()) == pieces()[theirs.name].shape[::-1]
        assert theirs.data.tobytes() == ours.view(torch.uint8).numpy().tobytes()


def written_by_them(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in list(METADATA.items())[1:]:
        kind = gguf.GGUFValueType[field.kind.upper()]
        if isinstance(field.value, list):
            writer.add_key_value(key, field.value, gguf.GGUFValueType.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(key, field.value, kind)
    for name, tensor in tensors().items():
        kind = name.partition(".")[2]
        raw = tensor.view(torch.int16).numpy() if kind == "bf16" else tensor.numpy()
        is_plain = kind in ("f32", "f16", "i32")
        writer.add_tensor(
            name,
            raw.view(np.uint8) if kind == "bf16" else raw,
            raw_dtype=None if is_plain else gguf.GGMLQuantizationType[kind.upper()],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_it_reads_what_ggml_org_wrote(tmp_path: Path) -> None:
    written_by_them(tmp_path / "theirs.gguf")
    file = GgufFile(tmp_path / "theirs.gguf")
    assert file.metadata == METADATA
    for name, tensor in tensors().items():
        assert torch.equal(file.load(name), tensor)


def test_both_write_the_same_bytes(path: Path, tmp_path: Path) -> None:
    written_by_them(tmp_path / "theirs.gguf")
    assert path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_tensors_share_the_files_pages_and_outlive_it(path: Path) -> None:
    file = GgufFile(path)
    first, second = file.load("plain.f32"), file.load("plain.f32")
    assert first.data_ptr() == second.data_ptr()
    before = path.read_bytes()
    first.zero_()
    file.close()
    assert first.eq(0).all()
    assert path.read_bytes() == before


def test_a_failure_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()

    def fail() -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write_gguf(path, METADATA, {"good": Piece("f32", (2,), lambda: torch.ones(2)), "bad": Piece("f32", (2,), fail)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("metadata", "piece", "message"),
    [
        ({"a": Field("uint8", 256)}, {}, "cannot be written as uint8"),
        ({"a": Field("string", [1])}, {}, "cannot be written as string"),
        ({"a": Field("string", "\ud800")}, {}, "cannot be written as string"),
        ({}, {"n" * 64: Piece("f32", (1,), lambda: torch.ones(1))}, "64 bytes"),
        ({}, {"a": Piece("f32", (1, 1, 1, 1, 1), lambda: torch.ones(1))}, "5 axes"),
        ({}, {"a": Piece("q4_k", (2, 128), lambda: torch.ones(1))}, "not whole q4_k blocks"),
    ],
)
def test_what_the_format_cannot_hold(metadata: dict, piece: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write_gguf(tmp_path / "x.gguf", metadata, piece)
    assert not list(tmp_path.iterdir())


def make_float(value: int) -> torch.Tensor:
    return torch.full((2,), float(value))


def test_several_files_are_one_checkpoint(tmp_path: Path) -> None:
    for index in range(3):
        fields = {"split.no": Field("uint16", index), "split.count": Field("uint16", 3)}
        if index == 0:
            fields["general.architecture"] = Field("string", "llama")
        piece = Piece("f32", (2,), lambda index=index: make_float(index))
        write_gguf(tmp_path / f"m-{index + 1:05d}-of-00003.gguf", fields, {f"tensor.{index}": piece})
    with open_gguf(tmp_path / "m-00001-of-00003.gguf") as checkpoint:
        assert checkpoint.names == ["tensor.0", "tensor.1", "tensor.2"]
        assert checkpoint.value("general.architecture") == "llama"
        assert checkpoint.load("tensor.2").tolist() == [2.0, 2.0]
        assert len(checkpoint.paths) == 3
    (tmp_path / "m-00002-of-00003.gguf").rename(tmp_path / "x-00002-of-00003.gguf")
    with pytest.raises(BrokenFileError, match="is missing: download it too"):
        open_gguf(tmp_path / "m-00001-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").rename(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").write_bytes((tmp_path / "m-00002-of-00003.gguf").read_bytes())
    with pytest.raises(BrokenFileError, match="not file 2 of 3"):
        open_gguf(tmp_path / "m-00001-of-00003.gguf")
    (tmp_path / "m-00001-of-00003.gguf").rename(tmp_path / "m.gguf")
    with pytest.raises(BrokenFileError, match="not named as such"):
        open_gguf(tmp_path / "m.gguf")


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    weights = torch.arange(3 * 4096, dtype=torch.float32).view(3, 4096)
    write_gguf(tmp_path / "large.gguf", {}, {"a": Piece("f32", tuple(weights.shape), lambda: weights)})
    file = GgufFile(tmp_path / "large.gguf")
    tensor = file.load("a")
    assert torch.equal(tensor, weights)
    file.release("a")
    assert torch.equal(tensor, weights)
