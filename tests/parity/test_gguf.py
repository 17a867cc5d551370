"""Models through GGUF files: bit for bit the same, in ggml-org's own layout."""

from itertools import product
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from llamita.checkpoint.gguf import load_gguf, open_model
from llamita.checkpoint.gguf_names import from_gguf, halved, interleaved, to_gguf
from llamita.checkpoint.gguf_save import FILE_TYPES, save_gguf
from llamita.config import LlamaConfig
from llamita.errors import BrokenFileError, UnsupportedError, UsageError
from llamita.files.gguf import GgufFile
from llamita.files.gguf_split import open_gguf
from llamita.files.gguf_types import Field
from llamita.files.gguf_write import Piece, write_gguf
from llamita.kernels.blocks import FORMATS
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.surgery import quantize, quantized_layers
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from tests.covering import covering

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 75_000.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 5000.0},
    "yarn, own factor": {"rope_type": "yarn", "factor": 3.0, "attention_factor": 1.3, "beta_fast": 20.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
        "rope_theta": 500_000.0,
    },
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10},
    "odd heads": {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 14},
    "one key head": {"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 6},
}


# All of each two, as no part of a file looks at three of them.
PAIRS = [
    tuple(case.values())
    for case in covering(({"rope": a, "shape": b, "tied": c} for a, b, c in product(ROPES, SHAPES, (False, True))), 2)
]


def random_model(**changes: Any) -> LlamaForCausalLM:
    """Weights, biases and norms all random: nothing hides behind a 0 or a 1."""
    given: dict[str, Any] = {
        "vocab_size": 2053,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 2040,
        "eos_token_id": 2046,
        **SHAPES["grouped"],
    }
    model = LlamaForCausalLM(LlamaConfig(**(given | changes)))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * noise if "norm" in name else 0.3 * noise
    return model.eval()


def blocky_model(**changes: Any) -> LlamaForCausalLM:
    """Rows of 256 and 512, as blocks of 256 need them."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_attention_heads": 8}
    return random_model(**{**sizes, "num_key_value_heads": 4, **changes})


@torch.no_grad()
def logits(model: LlamaForCausalLM) -> torch.Tensor:
    ids = torch.arange(0, 2000, 97)[None] % model.config.vocab_size
    return model(ids).logits


@pytest.fixture(scope="module")
def tokenizer(cria_path: Path) -> Tokenizer:
    return load_tokenizer(cria_path)


@pytest.mark.parametrize(("rope", "shape", "is_tied"), PAIRS)
def test_logits_are_the_same_bits(rope: str, shape: str, is_tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    parameters = ROPES[rope]
    model = random_model(rope_parameters=parameters, tie_word_embeddings=is_tied, **SHAPES[shape])
    loaded, _ = load_gguf(save_gguf(model, tokenizer, tmp_path / "m.gguf"))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.rope_parameters == model.config.rope_parameters
    ours, theirs = model.config.to_dict(), loaded.config.to_dict()
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing <= {"dtype", "torch_dtype", "eos_token_id", "pad_token_id"}
    assert not loaded.training
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == is_tied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays(dtype: torch.dtype, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model().to(dtype)
    loaded, _ = load_gguf(save_gguf(model, tokenizer, tmp_path / "m.gguf"))
    assert loaded.dtype == dtype
    assert torch.equal(logits(loaded), logits(model))


def test_biases(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(attention_bias=True, mlp_bias=True)
    loaded, _ = load_gguf(save_gguf(model, tokenizer, tmp_path / "m.gguf"))
    assert torch.equal(logits(loaded), logits(model))


def test_a_plain_weight_is_not_copied(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded, _ = load_gguf(save_gguf(random_model(), tokenizer, tmp_path / "m.gguf"))
    raw = (tmp_path / "m.gguf").read_bytes()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists a process's mappings")
    places = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith("m.gguf")]
    ranges = [(int(start, 16), int(stop, 16)) for start, stop in places]

    def is_mapped(weight: torch.Tensor) -> bool:
        return any(start <= weight.data_ptr() < stop for start, stop in ranges)

    assert len(raw) > 0
    assert is_mapped(loaded.model.layers[1].mlp.up_proj.weight)
    assert is_mapped(loaded.model.embed_tokens.weight)
    assert not is_mapped(loaded.model.layers[1].self_attn.q_proj.weight)  # put into our order


def test_names_go_both_ways() -> None:
    names = [name for name, _ in random_model(attention_bias=True, mlp_bias=True).named_parameters()]
    theirs = [to_gguf(name) for name in names]
    assert None not in theirs
    assert [from_gguf(str(name)) for name in theirs] == names
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for ours, name in zip(names, theirs, strict=True):
        assert table.get_name(ours, try_suffixes=(".weight", ".bias")) == name
    assert to_gguf("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert from_gguf("rope_freqs.weight") is None
    assert from_gguf("blk.0.ffn_gate_exps.weight") is None


@pytest.mark.parametrize("heads", [1, 3, 5])
def test_the_order_of_rows_is_llama_cpps(heads: int) -> None:
    rows = torch.arange(heads * 14 * 2).view(heads * 14, 2)
    # llama.cpp's converter: (heads, 2, half) -> (heads, half, 2)
    expected = rows.view(heads, 2, 7, 2).swapaxes(1, 2).reshape(rows.shape)
    assert torch.equal(interleaved(rows, heads), expected)
    assert torch.equal(halved(interleaved(rows, heads), heads), rows)


@pytest.mark.parametrize(
    ("form", "is_tied"),
    [
        *((form, True) for form in ("f32", "bf16", "q8_0", "q6_k", "q4_k_m", "iq4_nl")),
        *((form, False) for form in ("f16", "q8_0", "q4_0", "q4_k_m", "q5_k_s", "mxfp4")),
    ],
)
def test_ggml_org_reads_the_weights(form: str, is_tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    layers = 3 if form.endswith(("_m", "_s")) else 1  # of a mixture, layers have other formats
    model = blocky_model(tie_word_embeddings=is_tied, num_hidden_layers=layers)
    path = save_gguf(model, tokenizer, tmp_path / "m.gguf", form)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.file_type"].contents() == FILE_TYPES[form]
    name = gguf.LlamaFileType(FILE_TYPES[form]).name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    assert name == ("mxfp4_moe" if form == "mxfp4" else form)  # llama.cpp has no other number for mxfp4
    dequantized, _ = load_gguf(path, dtype="float32")
    weights = dict(dequantized.named_parameters())
    heads = {"q_proj": 8, "k_proj": 4}
    for tensor in reader.tensors:
        name = str(from_gguf(tensor.name))
        theirs = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(halved(theirs, heads.get(name.split(".")[-2])), weights[name]), name


@pytest.mark.parametrize("form", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_blocks_stay_as_they_are(form: str, is_tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = blocky_model(tie_word_embeddings=is_tied)
    first = save_gguf(model, tokenizer, tmp_path / "a" / "m.gguf", form)
    loaded, again = load_gguf(first)
    assert again is not None
    assert len(list(quantized_layers(loaded))) == 3 * 7 + 2
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    # From the file, from the model that was loaded, and from one that was quantized here: the same bytes.
    assert save_gguf(loaded, again, tmp_path / "b" / "m.gguf").read_bytes() == first.read_bytes()
    quantize(model, form)
    assert torch.equal(logits(loaded), logits(model))
    assert save_gguf(model, tokenizer, tmp_path / "c" / "m.gguf").read_bytes() == first.read_bytes()


def test_a_dtype_dequantizes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = save_gguf(blocky_model(), tokenizer, tmp_path / "m.gguf", "q4_k_m")
    loaded, _ = load_gguf(path, dtype="bfloat16")
    assert not list(quantized_layers(loaded))
    assert loaded.dtype == torch.bfloat16
    kept, _ = load_gguf(path)
    layer = kept.model.layers[0].mlp.up_proj
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, layer.matrix.dequantize().bfloat16())


def test_a_quantized_model_is_written_in_plain_numbers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = blocky_model()
    quantize(model, "q8_0")
    loaded, _ = load_gguf(save_gguf(model, tokenizer, tmp_path / "m.gguf", "f32"))
    assert torch.equal(loaded.lm_head.weight, model.lm_head.matrix.dequantize())
    keys = model.model.layers[1].self_attn.k_proj.matrix
    assert torch.equal(loaded.model.layers[1].self_attn.k_proj.weight, keys.dequantize())
    with pytest.raises(UnsupportedError, match="quantized already"):
        save_gguf(model, tokenizer, tmp_path / "n.gguf", "q4_0")


def test_rows_that_fill_no_block_stay(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(hidden_size=64, intermediate_size=88, head_dim=10)
    file = open_gguf(save_gguf(model, tokenizer, tmp_path / "m.gguf", "q4_k_m"))
    assert file.entry("blk.0.ffn_up.weight").storage == "q8_0"  # rows of 64
    assert file.entry("blk.0.ffn_down.weight").storage == "f32"  # rows of 88
    assert file.entry("blk.0.attn_norm.weight").storage == "f32"


def test_llama_3s_divisors_are_understood_without_our_field(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As in files that other programs wrote: the type is found again from its numbers."""
    for parameters in (
        {**ROPES["llama3"], "original_max_position_embeddings": 8192},
        {**ROPES["llama3"], "original_max_position_embeddings": 8192, "factor": 32.0},
    ):
        model = random_model(rope_parameters=parameters, head_dim=64, max_position_embeddings=131072)
        save_gguf(model, tokenizer, tmp_path / "m.gguf")
        rewrite(tmp_path / "m.gguf", without=["llamita.rope_parameters"])
        config = open_model(tmp_path / "m.gguf")[0]
        assert config.rope_parameters == model.config.rope_parameters


def test_other_divisors_divide_as_they_are(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = save_gguf(random_model(), tokenizer, tmp_path / "m.gguf")
    odd = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0])
    rewrite(path, pieces={"rope_freqs.weight": Piece("f32", (5,), lambda: odd)})
    loaded, again = load_gguf(path)
    plain = random_model()
    assert torch.allclose(loaded.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq / odd)
    assert again is not None
    twice, _ = load_gguf(save_gguf(loaded, again, tmp_path / "n.gguf"))
    assert torch.equal(logits(twice), logits(loaded))


def test_what_others_read_wins_over_our_field(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(rope_parameters=ROPES["linear"])
    path = save_gguf(model, tokenizer, tmp_path / "m.gguf")
    rewrite(path, fields={"llama.rope.scaling.factor": Field("float32", 4.0)})
    assert open_model(path)[0].rope_parameters["factor"] == 4.0
    rewrite(path, fields={"llamita.rope_parameters": Field("string", "{")})
    assert open_model(path)[0].rope_parameters["factor"] == 4.0


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
    ],
)
def test_what_ggufs_llama_does_not_know_is_refused(changes: dict, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="GGUF's Llama has no"):
        save_gguf(random_model(**changes), tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_wrong_calls_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no GGUF file has the format 'q9'"):
        save_gguf(random_model(), tokenizer, tmp_path / "m.gguf", "q9")
    with pytest.raises(UsageError, match="do not belong together"):
        save_gguf(random_model(vocab_size=2047, bos_token_id=1, eos_token_id=2), tokenizer, tmp_path / "m.gguf")
    large = random_model()
    large.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(UsageError, match="beyond 65504"):
        save_gguf(large, tokenizer, tmp_path / "m.gguf", "f16")
    quantize(large, "int8")
    with pytest.raises(UnsupportedError, match="int8"):
        save_gguf(large, tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def rewrite(path: Path, *, without: list[str] = [], fields: dict = {}, pieces: dict = {}, drop: list[str] = []) -> None:  # noqa: B006
    """Change a file's metadata and tensors."""
    file = GgufFile(path)
    old = {
        name: Piece(entry.storage, entry.shape, lambda name=name: file.load(name))
        for name, entry in file.entries.items()
        if name not in drop
    }
    metadata = {key: field for key, field in (file.metadata | fields).items() if key not in without}
    write_gguf(path, metadata, old | pieces)


BAD = {
    "another architecture": ({"fields": {"general.architecture": Field("string", "bert")}}, "'bert'"),
    "experts": ({"fields": {"llama.expert_count": Field("uint32", 8)}}, "mixture of experts"),
    "no length": ({"without": ["llama.context_length"]}, "llama.context_length"),
    "a text for a number": ({"fields": {"llama.block_count": Field("string", "3")}}, "no whole number"),
    "a billion layers": ({"fields": {"llama.block_count": Field("uint32", 10**9)}}, "num_hidden_layers is 1000000000"),
    "layers that differ": (
        {"fields": {"llama.attention.head_count": Field("uint32", [6, 5, 6])}},
        "layers that differ",
    ),
    "a huge head": ({"fields": {"llama.attention.key_length": Field("uint32", 2**30)}}, "only heads that turn whole"),
    "no heads": ({"fields": {"llama.attention.head_count": Field("uint32", 0)}}, "describes no Llama"),
    "half a rotation": ({"fields": {"llama.rope.dimension_count": Field("uint32", 4)}}, "turn whole"),
    "another rotation": ({"fields": {"llama.rope.scaling.type": Field("string", "longrope")}}, "'longrope'"),
    "a missing weight": ({"drop": ["blk.1.ffn_up.weight"]}, "no weights for model.layers.1.mlp.up_proj.weight"),
    "no embedding": ({"drop": ["token_embd.weight"]}, "token_embd.weight"),
    "a wrong shape": (
        {"pieces": {"blk.2.ffn_up.weight": Piece("f32", (88, 47), lambda: torch.ones(88, 47))}},
        "holds (88, 47)",
    ),
    "an unknown storage": (
        {"pieces": {"blk.2.ffn_up.weight": Piece("i8", (88, 48), lambda: torch.ones(88, 48).to(torch.int8))}},
        "stored as i8",
    ),
    "wrong divisors": (
        {"pieces": {"rope_freqs.weight": Piece("f32", (4,), lambda: torch.ones(4))}},
        "describes no Llama",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_models_are_refused(change: dict, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = save_gguf(random_model(), tokenizer, tmp_path / "m.gguf")
    rewrite(path, **change)
    with pytest.raises((BrokenFileError, UnsupportedError)) as caught:
        load_gguf(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_weights_are_warned_of(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = save_gguf(random_model(), tokenizer, tmp_path / "m.gguf")
    rewrite(path, pieces={"extra.weight": Piece("f32", (2,), lambda: torch.ones(2))})
    with pytest.warns(UserWarning, match=r"no place in the model: extra\.weight"):
        load_gguf(path)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    model = random_model()
    loaded, tokenizer = load_gguf(save_gguf(model, None, tmp_path / "m.gguf"))
    assert tokenizer is None
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.bos_token_id == 2040


def test_formats_are_all_readable() -> None:
    assert {"q8_0", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k"} <= FORMATS.keys()
