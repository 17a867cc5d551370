"""from_pretrained and save_pretrained by the names that everybody types: their effect, or one sentence."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from llamita import LlamaForCausalLM, LlamaForSequenceClassification
from llamita.errors import LlamitaError, NotFoundError
from tests.small import CONFIG


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "inside"
    LlamaForCausalLM(CONFIG).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": None},
        {"torch_dtype": "auto", "low_cpu_mem_usage": True, "use_safetensors": True, "trust_remote_code": False},
        {
            "token": "hf_x",
            "cache_dir": "/nowhere",
            "revision": "main",
            "local_files_only": True,
            "quantization_config": None,
        },
        {"device_map": "auto", "subfolder": None},
        {"device_map": "cpu"},
        {"device_map": torch.device("cpu")},
        {"device_map": {"": "cpu"}},
        {"device_map": {"model.embed_tokens": "cpu", "model.layers": "cpu"}, "device": "cpu"},
        {"weights_only": True, "_fast_init": True, "resume_download": None, "load_in_8bit": False},
    ],
)
def test_names_that_leave_the_model_as_it_is(folder: Path, options: dict[str, Any]) -> None:
    model = LlamaForCausalLM.from_pretrained(pretrained_model_name_or_path=folder, **options)
    usual = LlamaForCausalLM.from_pretrained(str(folder))
    assert model.config == usual.config
    assert (model.dtype, model.device.type, model.name_or_path) == (torch.float32, "cpu", str(folder))
    assert all(map(torch.equal, model.parameters(), usual.parameters()))


def test_names_that_change_it(folder: Path) -> None:
    read = LlamaForCausalLM.from_pretrained
    assert read(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert read(folder, torch_dtype="float16", dtype=torch.float16).dtype == torch.float16
    changed = read(folder, use_cache=False, pad_token_id=7, rms_norm_eps=1e-5, output_hidden_states=True)
    assert (changed.config.use_cache, changed.config.pad_token_id, changed.config.rms_norm_eps) == (False, 7, 1e-5)
    ids = torch.tensor([[1, 2]])
    assert changed(ids).past_key_values is None
    assert len(changed(ids).hidden_states) == 5
    assert read(folder.parent, subfolder="inside").config == read(folder).config
    by_name = read(folder, config=str(folder))
    assert by_name.config == read(folder, config=folder / "config.json").config == read(folder).config
    names = {0: "no", 1: "yes", 2: "so"}
    with pytest.warns(UserWarning, match=r"start random: score\.weight"):
        head = LlamaForSequenceClassification.from_pretrained(
            folder, id2label=names, label2id={label: number for number, label in names.items()}, num_labels=3
        )
    assert head.score.out_features == 3
    assert head.config.label2id == {"no": 0, "yes": 1, "so": 2}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device_map": [1]}, "device_map is [1]: give the name of a device"),
        ({"attn_implementation": {"": "eager"}}, "attn_implementation is {'': 'eager'}: give the name"),
        ({"trust_remote_code": True}, "trust_remote_code is not for llamita: llamita runs no code of a checkpoint"),
        ({"load_in_4bit": True}, "load_in_4bit is not for llamita: llamita.load(name, quantize="),
        ({"quantization_config": object()}, "quantization_config is not for llamita: llamita.load(name, quantize="),
        ({"gguf_file": "x.gguf"}, "gguf_file is not for llamita: llamita.load(path) reads GGUF files"),
        (
            {"dtyp": "float32"},
            "from_pretrained knows no 'dtyp', nor has the config such a field: did you mean 'dtype'?",
        ),
        (
            {"hiden_size": 8},
            "from_pretrained knows no 'hiden_size', nor has the config such a field: did you mean 'hidden_",
        ),
        ({"qqq": 8}, "from_pretrained knows no 'qqq', nor has the config such a field"),
        (
            {"dtype": "float32", "torch_dtype": "float16"},
            "dtype is float32 and torch_dtype float16: they are one thing",
        ),
        ({"device": "meta", "device_map": "cpu"}, "device is meta and device_map cpu: they are one thing"),
        (
            {"device_map": {"model": "cpu", "lm_head": "disk"}},
            "device_map names 2 devices: llamita keeps a loaded model",
        ),
        ({"device_map": {"": "disk"}}, "device 'disk' is not available here: use auto or cpu"),
        ({"device_map": {}}, "device_map names 0 devices"),
        (
            {"use_safetensors": False},
            "{folder} has .safetensors files, which are read first: leave use_safetensors out",
        ),
        ({"config": {"vocab_size": 3}}, "config is a builtins.dict: pass a llamita.LlamaConfig"),
        ({"use_cache": "no"}, "use_cache is 'no': it must be true or false"),
        ({"subfolder": "absent"}, "{folder}/absent has no config.json"),
        ({"hidden_size": 32}, "{folder} does not fit its config"),
    ],
)
def test_names_that_cannot_be_are_one_sentence(folder: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LlamitaError) as raised:
        LlamaForCausalLM.from_pretrained(folder, **options)
    assert str(raised.value).startswith(sentence.replace("{folder}", str(folder)))
    assert len(str(raised.value).splitlines()) == 1


def test_use_safetensors_insists(folder: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for choice in (None, False):
        again = LlamaForCausalLM.from_pretrained(tmp_path, use_safetensors=choice)
        assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    with pytest.raises(NotFoundError, match=r"has no \.safetensors files: leave use_safetensors out"):
        LlamaForCausalLM.from_pretrained(tmp_path, use_safetensors=True)


def test_the_hub_is_asked_as_one_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        return str(folder.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = LlamaForCausalLM.from_pretrained(
        "org/name", subfolder="inside", token="hf_x", cache_dir="/cache", revision="v1", force_download=True,
        local_files_only=True,
    )  # fmt: skip
    assert model.name_or_path == "org/name"
    wanted = {"repository": "org/name", "token": "hf_x", "cache_dir": "/cache", "revision": "v1"}
    assert wanted | {"force_download": True, "local_files_only": True} == {
        name: value for name, value in asked[0].items() if "patterns" not in name
    }
    assert "inside/*.safetensors" in asked[0]["allow_patterns"]
    assert "inside/*/*.safetensors" in asked[0]["ignore_patterns"]


@pytest.mark.parametrize("tied", [False, True])
def test_saving_by_the_familiar_names(tied: bool, tmp_path: Path) -> None:
    model = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=tied))
    other = {name: (tensor + 1).bfloat16() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=other, max_shard_size="100KB", safe_serialization=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, other[name]) for name, tensor in again.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    idle: dict[str, Any] = {"token": None, "save_peft_format": True, "save_function": torch.save}
    model.save_pretrained(tmp_path / "none", is_main_process=False, variant=None, **idle)
    assert not (tmp_path / "none").exists()
    for options, sentence in (
        ({"push_to_hub": True}, "^llamita uploads nothing"),
        ({"safe_serialization": False}, "^llamita writes safetensors only, as a pickled file can run code"),
        ({"variant": "fp16"}, "^variant is not for llamita"),
        ({"max_shard_sise": 5}, "^save_pretrained knows no 'max_shard_sise': did you mean 'max_shard_size'"),
    ):
        with pytest.raises(LlamitaError, match=sentence):
            model.save_pretrained(tmp_path / "none", **options)
