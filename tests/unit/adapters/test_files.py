"""Files of adapters: written and read again, damaged, incomplete, or for another model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llamita import LlamaForCausalLM
from llamita.adapters.config import LoraConfig
from llamita.adapters.files import load_adapter, save_adapter
from llamita.adapters.lora import adapters, add_lora, lora_layers
from llamita.errors import BrokenFileError, LlamitaError, NotFoundError, UnsupportedError, UsageError
from tests.small import CONFIG

IDS = torch.arange(9)[None]
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def small() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG.replace(num_hidden_layers=2)).eval()


def adapted(config: LoraConfig) -> LlamaForCausalLM:
    model = small()
    add_lora(model, config)
    for layer in lora_layers(model).values():
        for parameter in layer.pairs.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(adapted(LoraConfig(r=4)), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=3.5, use_rslora=True, lora_dropout=0.1),
        LoraConfig(target_modules="all-linear"),
        LoraConfig(target_modules="layers.1.mlp.*_proj"),
        LoraConfig(r=2, rank_pattern={"v_proj": 3}),
        LoraConfig(use_dora=True),
    ],
    ids=["rs", "all", "glob", "pattern", "dora"],
)
@torch.no_grad()
def test_read_again_it_is_the_same(config: LoraConfig, tmp_path: Path) -> None:
    model, again = adapted(config), small()
    save_adapter(model, tmp_path / "new" / "folder")
    assert load_adapter(again, tmp_path / "new" / "folder") == list(lora_layers(model))
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    save_adapter(again, tmp_path / "twice")
    for path in (tmp_path / "twice").iterdir():
        assert path.read_bytes() == (tmp_path / "new" / "folder" / path.name).read_bytes()


def test_one_of_several_is_written_under_no_name(saved: Path, tmp_path: Path) -> None:
    model = small()
    add_lora(model, LoraConfig(r=2))
    torch.manual_seed(5)
    load_adapter(model, saved, "other", trainable=True)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)  # reading draws nothing
    assert list(adapters(model)) == ["default", "other"]
    assert all(
        parameter.requires_grad for layer in lora_layers(model).values() for parameter in layer.pairs.parameters()
    )
    save_adapter(model, tmp_path, "other")
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == (saved / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"^no adapter is named 'third': the model has default, other"):
        save_adapter(model, tmp_path, "third")
    with pytest.raises(UsageError, match=r"^the model has an adapter named 'other' already"):
        load_adapter(model, saved, "other")


def test_peft_s_expressions_and_ranges_choose_layers(folder: Path) -> None:
    change_config(folder, target_modules=r".*\.(q|v)_proj", layers_to_transform=[0, 1])
    model = small()
    names = load_adapter(model, folder)
    assert len(names) == 4
    config = adapters(model)["default"]
    assert (config.target_modules, config.extra["layers_to_transform"]) == (names, None)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, UnsupportedError, "modules_to_save is .* use peft for this adapter"),
        ({"peft_type": "IA3"}, UnsupportedError, "peft_type is 'IA3'"),
        ({"r": 0}, UsageError, "r is 0"),
        (
            {"r": 8},
            UsageError,
            r"for another model: lora_A.weight of .* is of the shape \(4, 64\), and this one needs \(8, 64\)",
        ),
        ({"target_modules": ["q_proj"]}, BrokenFileError, "holds model.layers.0.self_attn.v_proj, which .* does not"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, BrokenFileError, "lacks .*k_proj, which adapter_config"),
        ({"use_dora": True}, BrokenFileError, r"lacks lora_magnitude_vector of model.layers.0.self_attn.q_proj"),
        ({"target_modules": "("}, UsageError, r"target_modules is '\(', no regular expression"),
    ],
)
def test_configs_that_do_not_fit(values: dict[str, Any], kind: type, message: str, folder: Path) -> None:
    change_config(folder, **values)
    refused(folder, kind, message)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda tensors: tensors.clear(), BrokenFileError, "holds no A and B"),
        (lambda tensors: tensors.pop(Q), BrokenFileError, "lacks lora_A.weight of model.layers.0.self_attn.q_proj"),
        (lambda tensors: tensors[Q].fill_(torch.nan), BrokenFileError, "numbers that are not finite"),
        (
            lambda tensors: tensors.update({Q: tensors[Q].int()}),
            BrokenFileError,
            "is torch.int32, and should be of floats",
        ),
        (lambda tensors: tensors.update({Q: tensors[Q][:, 1:].contiguous()}), UsageError, r"is of the shape \(4, 63\)"),
        (lambda tensors: tensors.update({"x": tensors[Q].clone()}), UnsupportedError, "holds 'x', which is neither"),
        (
            lambda tensors: tensors.update({"base_model.model.lm_head.base_layer.weight": torch.ones(260, 64)}),
            UnsupportedError,
            "which is neither",
        ),
        (
            lambda tensors: tensors.update({Q.replace("layers.0", "layers.7"): t for t in [tensors.pop(Q)]}),
            UsageError,
            "this one has no model.layers.7",
        ),
    ],
)
def test_tensors_that_do_not_fit(change: Any, kind: type, message: str, folder: Path) -> None:
    change_tensors(folder, change)
    refused(folder, kind, message)


def test_an_adapter_of_a_larger_model(tmp_path: Path) -> None:
    large = LlamaForCausalLM(CONFIG)
    add_lora(large, LoraConfig())
    save_adapter(large, tmp_path)
    refused(tmp_path, UsageError, "is for another model: this one has no model.layers.2.self_attn.q_proj")


def test_files_that_are_not_there_or_damaged(folder: Path) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(folder, BrokenFileError, "is truncated")
    weights.unlink()
    refused(folder, NotFoundError, "adapter_model.safetensors")
    config.write_text("{")
    refused(folder, BrokenFileError, "is not valid JSON")
    config.unlink()
    refused(folder, NotFoundError, "has no adapter_config.json: give the folder of an adapter")


def refused(folder: Path, kind: type, message: str) -> None:
    """Reading raises one sentence, and the model stays as it is."""
    model = small()
    with pytest.raises(LlamitaError, match=message) as caught:
        load_adapter(model, folder)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert not lora_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
