"""LoRA against peft on transformers' models: outputs, gradients, training, merged weights, and files both ways."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from llamita import LlamaForCausalLM
from llamita.adapters.config import LoraConfig
from llamita.adapters.files import load_adapter, save_adapter
from llamita.adapters.lora import add_lora, lora_layers, merge_adapters, merge_and_unload, set_adapter, without_adapters
from tests.small import CONFIG

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),  # peft writes the head's weight, too
]
IDS = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "down_proj", "lm_head"]},
    "dropout": {"lora_dropout": 0.5, "target_modules": "all-linear"},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    "embedding": {"r": 3, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "dora": {"r": 4, "lora_alpha": 3, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
}

TRAINED = ("lora", "rslora", "patterns", "embedding", "dora")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=False)).save_pretrained(folder)
    return folder


def peft_file(start: Path, folder: Path, seed: int = 1, **options: Any) -> Path:
    """An adapter of random numbers, as peft saves it."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM.from_pretrained(start)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    peft.get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def theirs(start: Path, folder: Path, dtype: str = "float32", *, trainable: bool = False) -> Any:
    model = transformers.LlamaForCausalLM.from_pretrained(start, dtype=dtype)
    return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def ours(start: Path, folder: Path, dtype: str = "float32", *, trainable: bool = False) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(start, dtype=dtype)
    load_adapter(model, folder, trainable=trainable)
    return model


def trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_outputs_and_merged_weights_equal_pefts_to_the_bit(
    options: dict[str, Any], dtype: str, start: Path, tmp_path: Path
) -> None:
    folder = peft_file(start, tmp_path, **options)
    mine, other = ours(start, folder, dtype), theirs(start, folder, dtype)
    assert torch.equal(mine(IDS).logits, other(IDS).logits)
    base = LlamaForCausalLM.from_pretrained(start, dtype=dtype)(IDS).logits
    assert not torch.equal(mine(IDS).logits, base)
    with without_adapters(mine):
        assert torch.equal(mine(IDS).logits, base)
    merge_and_unload(mine)
    merged = other.merge_and_unload()
    assert mine.state_dict().keys() == merged.state_dict().keys()
    assert all(torch.equal(mine.state_dict()[name], weight) for name, weight in merged.state_dict().items())
    assert torch.equal(mine(IDS).logits, merged(IDS).logits)


@torch.no_grad()
def test_several_adapters_equal_pefts(start: Path, tmp_path: Path) -> None:
    one = peft_file(start, tmp_path / "one", r=4)
    two = peft_file(start, tmp_path / "two", 2, r=2, target_modules=["q_proj", "up_proj"])
    mine, other = ours(start, one), theirs(start, one)
    load_adapter(mine, two, "two")
    other.load_adapter(str(two), "two")
    for names in (["default"], ["two"], ["default", "two"]):
        set_adapter(mine, *names)
        other.base_model.set_adapter(names)
        assert torch.equal(mine(IDS).logits, other(IDS).logits)
    merge_adapters(mine)
    assert torch.equal(mine(IDS).logits, other.merge_and_unload()(IDS).logits)


@pytest.mark.parametrize("options", [CONFIGS[one] for one in TRAINED], ids=TRAINED)
def test_training_equals_pefts(options: dict[str, Any], start: Path, tmp_path: Path) -> None:
    folder = peft_file(start, tmp_path, **options)
    mine, other = ours(start, folder, trainable=True), theirs(start, folder, trainable=True)
    losses: list[list[float]] = []
    for model in (mine.train(), other.train()):
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
        losses.append([])
        for _ in range(20):
            loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-6
    assert len(trained(mine)) == len(trained(other)) > 0
    assert max(float((a - b).detach().abs().max()) for a, b in zip(trained(mine), trained(other), strict=True)) <= 1e-6


@torch.no_grad()
def test_peft_reads_our_files(start: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(start)
    add_lora(model, LoraConfig(r=3, lora_alpha=7, target_modules=["layers.[02].mlp.*_proj", "k_proj"]))
    for layer in lora_layers(model).values():
        for parameter in layer.pairs.parameters():
            parameter.normal_()
    save_adapter(model, tmp_path)
    other = theirs(start, tmp_path)
    assert torch.equal(model(IDS).logits, other(IDS).logits)
    assert torch.equal(ours(start, tmp_path)(IDS).logits, other(IDS).logits)


def test_a_file_that_peft_wrote_is_written_with_all_its_keys(start: Path, tmp_path: Path) -> None:
    folder = peft_file(start, tmp_path / "theirs", **CONFIGS["patterns"])
    save_adapter(ours(start, folder), tmp_path / "ours")
    read = [json.loads((tmp_path / one / "adapter_config.json").read_text()) for one in ("theirs", "ours")]
    for values in read:
        values["target_modules"].sort()
    assert read[0] == read[1]
    tensors = [(tmp_path / one / "adapter_model.safetensors").read_bytes() for one in ("theirs", "ours")]
    assert tensors[0] == tensors[1]
