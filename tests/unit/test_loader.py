"""Which plans `llamita.load` applies. CUDA layers run here on their references, on a model that says it is there."""

from pathlib import Path

import pytest
import torch

import llamita
from llamita import LlamaForCausalLM
from llamita.checkpoint.gguf_save import save_gguf
from llamita.errors import NotFoundError, UnsupportedError, UsageError
from llamita.kernels.cuda import operations
from llamita.loader import KERNELS, _prepare
from llamita.model import plan
from llamita.model.fingerprint import fingerprint
from llamita.plans.cuda.layers import unsupported_reason
from llamita.quant.surgery import is_quantized
from llamita.train.method import export_adapter


@pytest.fixture
def model(small_path: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(small_path)


@pytest.fixture
def on_cuda(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> LlamaForCausalLM:
    """A model that says it is on a GPU, for which everything is there."""
    monkeypatch.setattr(LlamaForCausalLM, "device", torch.device("cuda"))
    monkeypatch.setattr(operations, "require", lambda device: None)
    return model


def prepared(model: LlamaForCausalLM, kernels: str = "auto", compile: str = "off", deterministic: bool = False) -> None:
    _prepare(model, kernels=kernels, compile=compile, deterministic=deterministic)


@pytest.mark.parametrize(("kernels", "plans"), [("auto", ("kernels",)), ("off", ())])
def test_the_cpu_has_its_kernels(kernels: str, plans: tuple[str, ...], small_path: Path) -> None:
    assert plan.active(llamita.load(small_path, device="cpu", kernels=kernels).model) == plans


def test_deterministic_changes_nothing_where_the_kernels_write(small_path: Path) -> None:
    for kernels, plans in (("auto", ("kernels",)), ("off", ("invariant",))):
        model = llamita.load(small_path, device="cpu", kernels=kernels, deterministic=True).model
        assert plan.active(model) == plans


@torch.no_grad()
def test_cuda_has_its_layers(on_cuda: LlamaForCausalLM) -> None:
    ids = torch.arange(9)[None]
    wanted = on_cuda(ids).logits
    prepared(on_cuda)
    assert plan.active(on_cuda) == ("cuda",)
    torch.testing.assert_close(on_cuda(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(UnsupportedError, match=r"^the plan cuda has laid the weights of model\.layers\.0 end to end"):
        on_cuda.state_dict()


@pytest.mark.parametrize(
    ("options", "plans"),
    [({"kernels": "off"}, ()), ({"deterministic": True}, ("invariant",)), ({"compile": "regional"}, ("compile",))],
    ids=str,
)
def test_other_plans_stand_alone_on_cuda(
    options: dict[str, object], plans: tuple[str, ...], on_cuda: LlamaForCausalLM
) -> None:
    prepared(on_cuda, **options)  # type: ignore[arg-type]
    assert plan.active(on_cuda) == plans


def test_a_model_that_the_cuda_layers_do_not_know_stays_plain(model: LlamaForCausalLM) -> None:
    assert "run on a GPU, not on cpu" in (unsupported_reason(model) or "")
    KERNELS["cuda"](model)
    assert plan.active(model) == ()


@torch.no_grad()
def test_an_adapter_is_merged_and_the_kernels_write(small_path: Path, tmp_path: Path) -> None:
    adapted, ids = LlamaForCausalLM.from_pretrained(small_path), torch.arange(9)[None]
    llamita.add_lora(adapted, llamita.LoraConfig(r=4, target_modules="all-linear"))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    llamita.save_adapter(adapted, tmp_path)
    plain, merged = (llamita.load(small_path, device="cpu", adapter=adapter).model for adapter in (None, tmp_path))
    assert plan.active(merged) == ("kernels",)
    assert fingerprint(merged) != fingerprint(plain)
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-3, atol=1e-3)
    assert (merged(ids).logits - plain(ids).logits).abs().max() > 0.1


@torch.no_grad()
def test_an_adapter_of_a_gguf_file_takes_its_layers_out_of_their_blocks(tmp_path: Path) -> None:
    loaded = llamita.load("cria", dtype="float32", kernels="off")
    ids = torch.tensor([loaded.tokenizer.encode("The cat sat on the old chair.")])
    path = save_gguf(loaded.model, loaded.tokenizer, tmp_path / "cria.gguf", "q8_0")
    llamita.add_lora(loaded.model, llamita.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    trained = {name: weight for name, weight in loaded.model.named_parameters() if weight.requires_grad}
    for weight in trained.values():
        torch.nn.init.normal_(weight, std=0.3)
    export_adapter(loaded.model, tmp_path / "adapter", weights=trained, base=str(path), merge=True)
    wanted = loaded.model(ids).logits
    plain, adapted, merged = (
        float((llamita.load(name, adapter=adapter, kernels="off").model(ids).logits - wanted).norm() / wanted.norm())
        for name, adapter in ((path, None), (path, tmp_path / "adapter"), (tmp_path / "adapter" / "merged", None))
    )
    assert plain > 0.4
    assert max(adapted, merged) < plain / 3  # what 8 bits of the other layers, and of these before, make of it


def test_an_adapter_comes_before_quantization(small_path: Path, tmp_path: Path) -> None:
    adapted = LlamaForCausalLM.from_pretrained(small_path)
    llamita.add_lora(adapted, llamita.LoraConfig(r=4))
    llamita.save_adapter(adapted, tmp_path)
    model = llamita.load(small_path, device="cpu", adapter=tmp_path, quantize="q8_0").model
    assert is_quantized(model)
    with pytest.raises(NotFoundError, match="has no adapter_config"):
        llamita.load(small_path, adapter=small_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("load_in_4bit", "load has no option 'load_in_4bit': write quantize, such as quantize=\"q8_0\""),
        ("n_ctx", "a cache grows as it fills"),
        ("quantise", "did you mean 'quantize'?"),
        ("zebra", "leave it out, or take one of name, dtype, device, "),
    ],
)
def test_options_of_other_libraries_are_answered(name: str, says: str) -> None:
    with pytest.raises(UsageError) as told:
        llamita.load(**{name: 1})  # type: ignore[arg-type]
    assert says in str(told.value)


@pytest.mark.parametrize("named", [False, True])
def test_an_llm_is_made_by_load(named: bool) -> None:
    with pytest.raises(UsageError, match=r"^llamita\.load makes an LLM"):
        llamita.LLM(model="cria") if named else llamita.LLM("cria")  # type: ignore[arg-type]  # as in vLLM
