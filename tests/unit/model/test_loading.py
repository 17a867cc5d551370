"""Checkpoints in and out of models: whole, in shards, tied, renamed, of other ages, and what the report says."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamita import LlamaConfig, LlamaForCausalLM, LlamaModel
from llamita.errors import BrokenFileError, NotFoundError, UnsupportedError, UsageError

V, D = 61, 24
CONFIG = LlamaConfig(
    vocab_size=V, hidden_size=D, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, max_position_embeddings=32, initializer_range=0.3, pad_token_id=0,
)  # fmt: skip


def saved(folder: Path, **changes: Any) -> LlamaForCausalLM:
    """A model whose checkpoint lies in the folder."""
    model = LlamaForCausalLM(CONFIG.replace(**changes)).eval()
    model.save_pretrained(folder)
    return model


def edit(folder: Path, change: Any) -> None:
    """Change the tensors of a checkpoint of one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", 9_000])
def test_there_and_back(shard: str | int, tied: bool, tmp_path: Path) -> None:
    model = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=tied)).eval()
    model.generation_config = {"temperature": 0.6}
    model.save_pretrained(tmp_path, max_shard_size=shard)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 if shard == 9_000 else [path.name for path in shards] == ["model.safetensors"]
    names = {name for path in shards for name in load_file(path)}
    assert ("lm_head.weight" in names) != tied
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert same(again, model)
    assert not again.training
    assert str(again.load_report) == ""
    assert again.generation_config == {"temperature": 0.6}
    assert again.config == model.config.replace(dtype="float32", extra=again.config.extra)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    ids = torch.tensor([[1, 2, 3]])
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(again(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_writes_is_read(tied: bool, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        **{k: v for k, v in CONFIG.to_dict().items() if k in FIELDS}, tie_word_embeddings=tied
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    ours = LlamaForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def test_a_tied_checkpoint_may_hold_its_head_or_only_it(tmp_path: Path) -> None:
    model = saved(tmp_path, tie_word_embeddings=True)
    edit(tmp_path, lambda x: x.update({"lm_head.weight": x["model.embed_tokens.weight"].clone()}))
    assert same(LlamaForCausalLM.from_pretrained(tmp_path), model)
    edit(tmp_path, lambda x: x.pop("model.embed_tokens.weight"))
    assert same(LlamaForCausalLM.from_pretrained(tmp_path), model)
    edit(tmp_path, lambda x: x.update({"model.embed_tokens.weight": x["lm_head.weight"] + 1}))
    with pytest.raises(BrokenFileError, match=r"^the config ties lm_head\.weight to model\.embed_tokens\.weight, but"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_an_untied_checkpoint_without_its_head_starts_one(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, lambda x: x.pop("lm_head.weight"))
    with pytest.warns(UserWarning, match=r"1 weights are not in the checkpoint and start random: lm_head\.weight$"):
        model = LlamaForCausalLM.from_pretrained(tmp_path)
    assert model.load_report.missing_keys == ["lm_head.weight"]
    assert 0.2 < model.lm_head.weight.std().item() < 0.4


def test_old_frequencies_are_ignored_and_strangers_named(tmp_path: Path) -> None:
    model = saved(tmp_path)
    edit(tmp_path, lambda x: x.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert same(LlamaForCausalLM.from_pretrained(tmp_path), model)
    edit(tmp_path, lambda x: x.update({f"visual.{at}": torch.ones(2) for at in range(5)}))
    with pytest.warns(UserWarning, match=r"5 in the checkpoint have no place .*: visual\.0, .* and 2 more$"):
        again, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)  # type: ignore[misc]
    assert same(again, model)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)[1]
    assert info == theirs == {
        "missing_keys": set(), "unexpected_keys": {f"visual.{at}" for at in range(5)}, "mismatched_keys": set(),
        "error_msgs": [],
    }  # fmt: skip


def test_other_shapes_are_refused_unless_allowed(tmp_path: Path) -> None:
    model = saved(tmp_path)
    config = CONFIG.replace(vocab_size=V + 3)
    with pytest.raises(
        UsageError, match=r"does not fit its config: .*model\.embed_tokens\.weight \(61, 24\) \(64, 24\)"
    ):
        LlamaForCausalLM.from_pretrained(tmp_path, config=config)
    with pytest.warns(UserWarning, match="of another shape in the checkpoint"):
        other = LlamaForCausalLM.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    assert [name for name, _, _ in other.load_report.mismatched_keys] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)
    assert (other.model.embed_tokens.weight[0] == 0).all()  # the padding row
    assert other(torch.tensor([[63]])).logits.shape == (1, 1, 64)


def test_base_and_language_model_read_each_other(tmp_path: Path) -> None:
    model = saved(tmp_path / "lm")
    with pytest.warns(UserWarning, match=r"no place in the model: lm_head\.weight$"):
        base = LlamaModel.from_pretrained(tmp_path / "lm")
    assert same(base, model.model)
    base.save_pretrained(tmp_path / "base")
    assert "embed_tokens.weight" in load_file(tmp_path / "base" / "model.safetensors")
    with pytest.warns(UserWarning, match=r"start random: lm_head\.weight$"):
        again = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    assert same(again.model, model.model)


def test_pickled_checkpoints_are_read_without_their_code(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert same(LlamaForCausalLM.from_pretrained(tmp_path), model)
    torch.save({"model.norm.weight": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BrokenFileError):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_dtype_is_the_configs_the_files_or_the_one_asked_for(tmp_path: Path) -> None:
    LlamaForCausalLM(CONFIG).to(torch.bfloat16).save_pretrained(tmp_path)
    assert LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert (loaded.dtype, loaded.config.dtype) == (torch.float32, "float32")
    assert LlamaForCausalLM.from_pretrained(tmp_path, dtype="float16").dtype == torch.float16
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["dtype"] == values["torch_dtype"] == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(values | {"dtype": None, "torch_dtype": None}))
    assert LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    for name in ("auto", "bfloat16", "float32"):
        frequencies = LlamaForCausalLM.from_pretrained(tmp_path, dtype=name).model.rotary_emb.inv_freq
        assert frequencies.dtype == torch.float32
        assert frequencies.device.type == "cpu"
    for argument, sentence in (
        ({"dtype": "int3"}, "^dtype 'int3' is unknown"),
        ({"device": "abacus"}, "^device 'abacus'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            LlamaForCausalLM.from_pretrained(tmp_path, **argument)


def test_a_state_dict_stands_in_for_files() -> None:
    model = LlamaForCausalLM(CONFIG)
    again = LlamaForCausalLM.from_pretrained(None, config=CONFIG, state_dict=model.state_dict())
    assert same(again, model)
    with pytest.raises(UsageError, match=r"^without a folder, from_pretrained needs both config= and state_dict=$"):
        LlamaForCausalLM.from_pretrained(None, config=CONFIG)


def test_weights_are_the_files_own_pages(tmp_path: Path) -> None:
    config = CONFIG.replace(vocab_size=20_000, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    inside = _mapped(tmp_path / "model.safetensors")
    assert inside
    for name, parameter in model.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in inside), name
    # Writing to a weight changes neither the file nor another model read from it.
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert (LlamaForCausalLM.from_pretrained(tmp_path).model.norm.weight == 1).all()


def _mapped(path: Path) -> list[tuple[int, int]]:
    """The addresses at which this process has a file mapped (Linux)."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if line[-1] == str(path.resolve())]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def test_no_weight_is_first_made_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)

    def refuse(self: Tensor, *_: object, **__: object) -> Tensor:
        assert self.is_meta, "a weight on a real device was filled at random"
        return self

    monkeypatch.setattr(Tensor, "normal_", refuse)
    LlamaForCausalLM.from_pretrained(tmp_path)


def test_absent_and_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        LlamaForCausalLM.from_pretrained(tmp_path / "absent", local_files_only=True)
    LlamaConfig.from_dict(CONFIG.to_dict() | {"quantization_config": {"quant_method": "awq"}}).save_pretrained(tmp_path)
    save_file({"model.norm.weight": torch.ones(D)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"^this checkpoint is quantized by awq: give one of plain weights$"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_run_time_choices_are_not_written(tmp_path: Path) -> None:
    saved(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", numerics="meta")
    assert (model.config.attn_implementation, model.config.numerics) == ("eager", "meta")
    model.save_pretrained(tmp_path / "again")
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not {"attn_implementation", "numerics", "extra"} & values.keys()
    assert values["architectures"] == ["LlamaForCausalLM"]


def test_a_model_may_be_saved_over_the_files_it_was_read_from(tmp_path: Path) -> None:
    saved(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.model.norm.weight.fill_(2.0)
    model.save_pretrained(tmp_path)
    assert same(LlamaForCausalLM.from_pretrained(tmp_path), model)
