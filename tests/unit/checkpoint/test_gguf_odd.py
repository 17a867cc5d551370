"""GGUF files whose tensors are stored, shaped or named oddly: read right, or refused by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

import llamita
from llamita.checkpoint.gguf import load_gguf
from llamita.checkpoint.gguf_names import FREQUENCY_FACTORS
from llamita.checkpoint.gguf_save import save_gguf
from llamita.errors import BrokenFileError, LlamitaError, UnsupportedError
from llamita.files.gguf import GgufFile
from llamita.files.gguf_types import PLAIN, STORAGES, Field
from llamita.files.gguf_write import Piece, write_gguf
from llamita.kernels.blocks import FORMATS
from llamita.quant.linear import QuantizedEmbedding
from llamita.quant.surgery import quantize_weight

UNREAD = [name for name in STORAGES if name not in PLAIN and name not in FORMATS]
WEIGHTS = ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_norm.weight", "output_norm.weight")
Pieces = dict[str, Piece]
Change = Callable[[Pieces], object]


@pytest.fixture(scope="module")
def good(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    small = llamita.load(small_path, kernels="off")
    return GgufFile(save_gguf(small.model, small.tokenizer, tmp_path_factory.mktemp("gguf") / "good.gguf"))


def written(good: GgufFile, path: Path, change: Change, fields: Mapping[str, Field] | None = None) -> Path:
    """The good file once more, with its tensors changed."""
    pieces = {n: Piece(e.storage, e.shape, lambda n=n: good.load(n)) for n, e in good.entries.items()}
    change(pieces)
    write_gguf(path, {**good.metadata, **(fields or {})}, pieces)
    return path


def zeros(storage: str, *shape: int) -> Piece:
    """A tensor of zeros, stored in a way."""
    dtype = STORAGES[storage].dtype or torch.uint8
    size = STORAGES[storage].size(shape) // dtype.itemsize
    return Piece(storage, shape, lambda: torch.zeros(size, dtype=dtype))


def put(name: str, piece: Piece) -> Change:
    return lambda pieces: pieces.update({name: piece})


@pytest.mark.parametrize("storage", UNREAD)
def test_a_storage_without_a_reader_is_refused_by_name(storage: str, good: GgufFile, tmp_path: Path) -> None:
    for name in WEIGHTS:
        shape = good.entries[name].shape
        columns = -(-shape[-1] // STORAGES[storage].block) * STORAGES[storage].block
        path = written(good, tmp_path / "x.gguf", put(name, zeros(storage, *shape[:-1], columns)))
        for dtype in ("auto", "float32"):
            with pytest.raises(LlamitaError) as caught:
                load_gguf(path, dtype=dtype)
            if columns == shape[-1] or name != "blk.0.attn_q.weight":  # which the sizes are known by
                assert str(caught.value).endswith(f"tensor {name} is stored as {storage}: known are "
                                                  "f32, f16, bf16, " + ", ".join(FORMATS))  # fmt: skip


REFUSED: dict[str, tuple[Change, type[LlamitaError], str]] = {
    "a norm in blocks": (
        put("output_norm.weight", zeros("q8_0", 64)), UnsupportedError, "model.norm.weight is stored as q8_0: norms",
    ),
    "a wider norm": (put("blk.0.attn_norm.weight", zeros("f32", 96)), BrokenFileError, r"and holds \(96,\)"),
    "an embedding of one axis": (put("token_embd.weight", zeros("f32", 260 * 64)), BrokenFileError, "of shape"),
    "an embedding of no axis": (put("token_embd.weight", zeros("f32")), BrokenFileError, r"of shape \(\)"),
    "an embedding of three axes": (put("token_embd.weight", zeros("f32", 1, 260, 64)), BrokenFileError, "of shape"),
    "fewer rows than tokens": (put("token_embd.weight", zeros("q8_0", 32, 64)), BrokenFileError, "vocabulary of 32"),
    "wider blocks": (put("blk.1.ffn_up.weight", zeros("q8_0", 176, 96)), BrokenFileError, r"and holds \(176, 96\)"),
    "rows and columns swapped": (put("blk.1.attn_k.weight", zeros("q8_0", 64, 32)), BrokenFileError, r"\(64, 32\)"),
    "blocks of three axes": (put("blk.1.attn_k.weight", zeros("q8_0", 32, 2, 32)), BrokenFileError, r"\(32, 2, 32\)"),
    "a weight of integers": (put("blk.0.ffn_up.weight", zeros("i8", 176, 64)), UnsupportedError, "stored as i8"),
    "a weight of doubles": (put("blk.0.ffn_gate.weight", zeros("f64", 176, 64)), UnsupportedError, "stored as f64"),
    "divisors in blocks": (put(FREQUENCY_FACTORS, zeros("q8_0", 32)), BrokenFileError, "rope_freqs.weight is q8_0"),
    "divisors of integers": (put(FREQUENCY_FACTORS, zeros("i32", 8)), BrokenFileError, "rope_freqs.weight is i32"),
    "too many divisors": (put(FREQUENCY_FACTORS, zeros("f32", 16)), BrokenFileError, r"of shape \(16,\), not plain"),
    "divisors of zero": (put(FREQUENCY_FACTORS, zeros("f32", 8)), BrokenFileError, "describes no Llama"),
    "one layer's bias": (put("blk.1.attn_q.bias", zeros("f32", 64)), BrokenFileError, "is incomplete: .*0.self_attn"),
    "a bias in blocks": (
        lambda x: x.update({f"blk.{i}.attn_v.bias": zeros("q8_0", 32) for i in range(4)}), UnsupportedError, "norms",
    ),
    "a bias of another shape": (
        lambda x: x.update({f"blk.{i}.attn_v.bias": zeros("f32", 64) for i in range(4)}), BrokenFileError, r"\(64,\)",
    ),
    "a norm's bias": (put("output_norm.bias", zeros("f32", 64)), UnsupportedError, "no Llama adds: model.norm.bias"),
    "two weights less": (
        lambda x: (x.pop("output_norm.weight"), x.pop("blk.2.ffn_norm.weight")), BrokenFileError, "is incomplete: .*2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_what_does_not_fit_is_refused(case: str, dtype: str, good: GgufFile, tmp_path: Path) -> None:
    change, kind, sentence = REFUSED[case]
    with pytest.raises(kind, match=sentence) as caught:
        load_gguf(written(good, tmp_path / "x.gguf", change), dtype=dtype)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "field", "sentence"),
    [
        ("attention.causal", Field("bool", False), "attends to later tokens too .attention.causal.: only causal"),
        ("rope.scaling.attn_factor", Field("float32", 1.5), r"scales cos and sin by 1.5 \(attn_factor\)"),
    ],
)
def test_what_changes_the_arithmetic_is_refused(
    key: str, field: Field, sentence: str, good: GgufFile, tmp_path: Path
) -> None:
    path = written(good, tmp_path / "x.gguf", lambda pieces: None, {f"llama.{key}": field})
    with pytest.raises(UnsupportedError, match=sentence):
        load_gguf(path)


def test_tensors_of_other_names_are_never_taken_for_weights(good: GgufFile, tmp_path: Path) -> None:
    strange = {
        "model.norm.weight": zeros("f32", 64),
        "lm_head.weight": zeros("q8_0", 260, 64),
        "mtp.weight": zeros("q8_0", 2, 32),
        "clip.weight": zeros("iq2_s", 1, 256),
    }
    path = written(good, tmp_path / "x.gguf", lambda pieces: pieces.update(strange))
    with pytest.warns(UserWarning, match="4 in the checkpoint have no place in the model"):
        model, _ = load_gguf(path)
    assert model.load_report.unexpected_keys == list(strange)
    expected, _ = load_gguf(good.path)
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_biases_that_no_layer_has_are_zero(good: GgufFile, tmp_path: Path) -> None:
    """As in files of models that add them to queries, keys and values alone."""
    sizes = {"q": 64, "k": 32, "v": 32}
    given = {f"blk.{layer}.attn_{which}.bias": zeros("f32", n) for layer in range(4) for which, n in sizes.items()}
    model, _ = load_gguf(written(good, tmp_path / "x.gguf", lambda pieces: pieces.update(given)))
    assert not model.get_parameter("model.layers.3.self_attn.o_proj.bias").any()
    expected, _ = load_gguf(good.path)
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("ids", [[-1], [0, 5], [3, 10**9]])
def test_no_row_is_read_beyond_a_quantized_embedding(ids: list[int]) -> None:
    embedding = QuantizedEmbedding(quantize_weight("q8_0", torch.ones(5, 32)), dtype=torch.float32)
    assert embedding(torch.tensor([0, 4])).shape == (2, 32)
    with pytest.raises(IndexError, match="but there are 5 embeddings"):
        embedding(torch.tensor(ids))
