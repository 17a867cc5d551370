"""A chain from base to GGUF: what is equal is proven equal, what moved is measured, what was damaged is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from llamita.adapters.config import LoraConfig
from llamita.adapters.files import save_adapter
from llamita.adapters.lora import add_lora, lora_layers, merge_and_unload
from llamita.checkpoint.chain import Edge, verify_chain
from llamita.checkpoint.convert import convert
from llamita.checkpoint.gguf_save import save_gguf
from llamita.checkpoint.load import load_pretrained
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM

TEXT = "Mia had a red kite. She went to the hill with her friend."
Change = Callable[[LlamaForCausalLM], None]


@pytest.fixture(scope="module")
def folder(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bf16, an adapter on it, both merged, and the merged model as GGUF files."""
    root = tmp_path_factory.mktemp("chain")
    convert(small_path, root / "base", format="bf16")
    model = load_pretrained(root / "base", device="cpu").model
    add_lora(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(1)
    for layer in lora_layers(model).values():
        for parameter in layer.pairs["default"].parameters():
            nn.init.normal_(parameter, std=0.1)
    save_adapter(model, root / "adapter")
    merge_and_unload(model)
    save(model, root / "base", root / "merged")
    tokenizer = load_pretrained(root / "merged", device="cpu").tokenizer
    for format in ("bf16", "q8_0"):
        save_gguf(model, tokenizer, root / f"{format}.gguf", format)
    return root


def save(model: LlamaForCausalLM, like: Path, folder: Path) -> None:
    """Write a model with the tokenizer of another folder."""
    model.save_pretrained(folder)
    for file in like.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())


def changed(folder: Path, name: str, change: Change) -> Path:
    """A copy of a model's folder after a change of the model."""
    model = load_pretrained(folder / name, device="cpu").model
    with torch.no_grad():
        change(model)
    target = folder / f"{name}-{change.__name__}"
    save(model, folder / name, target)
    return target


def edges(*paths: Path) -> list[Edge]:
    return list(verify_chain([str(path) for path in paths], TEXT, tokens=40))


def test_a_whole_chain_is_proven(folder: Path) -> None:
    tuned, merged, stored = edges(folder / "base", folder / "adapter", folder / "merged", folder / "q8_0.gguf")
    assert [edge.action for edge in (tuned, merged, stored)] == ["fine-tune", "merge", "store"]
    assert not any(edge.unequal for edge in (tuned, merged, stored))
    assert tuned.kl > 100 * merged.kl > 0  # merging rounds to bf16
    assert tuned.first == merged.first == "model.layers.0.self_attn.q_proj"
    assert 0 < stored.kl < tuned.kl
    assert stored.first == "model.embed_tokens"  # which is quantized too
    assert stored.agreement > tuned.agreement


def test_a_plain_file_and_the_way_back_are_bit_equal(folder: Path) -> None:
    back = convert(folder / "bf16.gguf", folder / "back", format="bf16", force=True)
    for edge in edges(folder / "merged", folder / "bf16.gguf", back):
        assert (edge.kl, edge.agreement, edge.first, edge.unequal) == (0.0, 1.0, None, [])


def nudge(model: LlamaForCausalLM) -> None:
    model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.25


def test_one_changed_weight_is_named(folder: Path) -> None:
    nudged = changed(folder, "merged", nudge)
    _, edge = edges(folder / "base", folder / "adapter", nudged)
    assert edge.unequal == ["model.layers.1.mlp.up_proj.weight"]
    (edge,) = edges(nudged, folder / "bf16.gguf")
    assert edge.unequal == ["model.layers.1.mlp.up_proj.weight"]
    assert edge.first == "model.layers.1.mlp.up_proj"
    assert edge.kl > 0


def soften(model: LlamaForCausalLM) -> None:
    model.config = model.config.replace(rms_norm_eps=0.5)


def test_another_config_with_the_same_weights_is_named(folder: Path) -> None:
    (edge,) = edges(changed(folder, "merged", soften), folder / "bf16.gguf")
    assert edge.unequal == ["model.layers.0.input_layernorm (with the same weights)"]


def test_another_tokenizer_is_named(folder: Path) -> None:
    other = changed(folder, "merged", unchanged)
    config = other / "tokenizer_config.json"
    text = config.read_text(encoding="utf-8")
    assert "assistant: " in text
    config.write_text(text.replace("assistant: ", "helper: "), encoding="utf-8")
    (edge,) = edges(folder / "merged", other)
    assert edge.unequal == ["the token ids of a chat"]
    assert edge.first is None


def unchanged(model: LlamaForCausalLM) -> None:
    """Change nothing."""


def test_the_divergence_is_that_of_the_distributions(folder: Path) -> None:
    (edge,) = edges(folder / "base", folder / "merged")
    loaded = [load_pretrained(folder / name, dtype="float32", device="cpu") for name in ("base", "merged")]
    ids = torch.tensor([loaded[0].tokenizer.encode(TEXT)[:40]])
    with torch.no_grad():
        p, q = (torch.distributions.Categorical(logits=one.model(ids).logits[0].double()) for one in loaded)
    assert edge.action == "train"
    assert edge.kl == pytest.approx(torch.distributions.kl_divergence(p, q).mean().item(), rel=1e-9)


def test_a_wrong_chain_is_one_sentence(folder: Path) -> None:
    with pytest.raises(UsageError, match="a chain has at least two models"):
        edges(folder / "base")
    with pytest.raises(UsageError, match="is an adapter: put the model that it is on before it"):
        edges(folder / "adapter", folder / "base")
    with pytest.raises(UsageError, match="put the folder of the merged model between it and"):
        edges(folder / "base", folder / "adapter", folder / "q8_0.gguf")
