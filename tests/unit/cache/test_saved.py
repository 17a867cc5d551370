"""Caches on disk: every kind comes back as it was, for its own model only, and damaged files say so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llamita import DynamicCache, LlamaConfig, LlamaForCausalLM, SlidingWindowCache, StaticCache
from llamita.cache import Cache, OffloadedCache, QuantizedCache, SinkCache
from llamita.cache.growing import GrowingCache
from llamita.cache.saved import load, save
from llamita.errors import BrokenFileError, NotFoundError, UsageError
from llamita.files.disk import replacing
from llamita.files.safetensors import SafetensorsFile, read_metadata, write_tensors
from llamita.model.fingerprint import fingerprint

B = 2
CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.4,
)  # fmt: skip
MAKERS: dict[str, Callable[[], Cache]] = {
    "dynamic": DynamicCache,
    "growing": GrowingCache,
    "unrotated": lambda: DynamicCache(unrotated=True),
    "static": lambda: StaticCache(CONFIG, batch=B, capacity=15),
    "unrotated static": lambda: StaticCache(CONFIG, batch=B, capacity=15, unrotated=True),
    "sliding": lambda: SlidingWindowCache(4),
    "sink": lambda: SinkCache(4, sinks=2),
    "int8": lambda: QuantizedCache(8, group=2, residual=3),
    "int4": lambda: QuantizedCache(4, group=2, residual=3, unrotated=True),
    "offloaded": OffloadedCache,
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(CONFIG).eval()


def read(model: LlamaForCausalLM, cache: Cache, tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 61, (B, tokens), generator=generator)
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_a_text_goes_on_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = LlamaForCausalLM(CONFIG).eval().to(dtype)
    cache = MAKERS[name]()
    if isinstance(cache, StaticCache):
        cache.keys, cache.values = [k.to(dtype) for k in cache.keys], [v.to(dtype) for v in cache.values]
    read(model, cache, 7)
    save(cache, tmp_path / "text.cache", fingerprint=fingerprint(model))
    twin = load(tmp_path / "text.cache", fingerprint=fingerprint(model))
    assert type(twin) is type(cache)
    assert (twin.length, twin.capacity, twin.nbytes, len(twin)) == (7, cache.capacity, cache.nbytes, 2)
    for seed in (1, 2):
        assert torch.equal(read(model, twin, 3, seed), read(model, cache, 3, seed))
    twin.reorder(torch.tensor([1, 0]))
    twin.reset()
    assert twin.length == 0
    assert (tmp_path / "text.cache").stat().st_size < 12_000


def test_an_empty_cache_is_saved_too(tmp_path: Path) -> None:
    for name in ("dynamic", "sliding", "sink", "int8", "static"):
        save(MAKERS[name](), tmp_path / name, fingerprint="a")
        assert load(tmp_path / name, fingerprint="a").length == 0


def test_a_cache_of_another_model_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "text.cache"
    cache = DynamicCache()
    read(model, cache, 3)
    save(cache, path, fingerprint=fingerprint(model))
    other = LlamaForCausalLM(CONFIG).eval()
    with pytest.raises(UsageError, match=r"^the cache in .*text.cache is of another model: read its text again"):
        load(path, fingerprint=fingerprint(other))


def test_the_fingerprint_knows_weights_shapes_and_settings(model: LlamaForCausalLM) -> None:
    own = fingerprint(model)
    assert own == fingerprint(model)
    twin = LlamaForCausalLM(CONFIG)
    twin.load_state_dict(model.state_dict())
    assert fingerprint(twin) == own
    others = {own}
    with torch.no_grad():
        twin.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    others.add(fingerprint(twin))
    others.add(fingerprint(model.bfloat16()))
    model.float()
    for change in ({"rms_norm_eps": 1e-5}, {"rope_theta": 5e4}):
        changed = LlamaForCausalLM(CONFIG.replace(**change))
        changed.load_state_dict(twin.state_dict())
        others.add(fingerprint(changed))
    assert len(others) == 5


def test_other_classes_are_refused(tmp_path: Path) -> None:
    class Mine(DynamicCache):
        pass

    with pytest.raises(UsageError, match=r"^a Mine cannot be saved: only dynamic, static, .* caches can$"):
        save(Mine(), tmp_path / "x", fingerprint="a")
    with pytest.raises(NotFoundError):
        load(tmp_path / "x", fingerprint="a")


def spoilt(path: Path, *, tensors: dict[str, object] | None = None, **about: str) -> None:
    """Rewrite a file with some tensors replaced (None: left out) and some of its metadata changed."""
    file = SafetensorsFile(path)
    found = {name: file.load(name).clone() for name in file.entries} | (tensors or {})
    metadata = read_metadata(path) | about
    with replacing(path) as out:
        write_tensors(out, {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "llamita-cache-0"},
        {"kind": "pickle"},
        {"facts": "{"},
        {"facts": "[" * 100_000},
        {"facts": "{}"},
        {"facts": '{"window": 4, "unrotated": true, "layers": 2, "seen": [7], "capacity": null}'},
        {"facts": '{"window": 4, "unrotated": true, "layers": -1, "seen": [7, 7], "capacity": null}'},
        {"facts": '{"window": 4, "unrotated": true, "layers": 99999999999, "seen": [7, 7], "capacity": null}'},
        {"facts": '{"window": "a", "unrotated": true, "layers": 2, "seen": [7, 7], "capacity": null}'},
        {"facts": '{"window": 4, "unrotated": true, "layers": 2, "seen": [1, 7], "capacity": null}'},
        {"tensors": {"keys.1": None}},
        {"tensors": {"keys.1": torch.zeros(B, 2, 3, 5)}},
        {"tensors": {"values.0": torch.zeros(B, 2, 2, 4)}},
        {"tensors": {"values.0": torch.zeros(B, 2, 3, 4, dtype=torch.long)}},
        {"tensors": {"keys.0": torch.zeros(3)}},
        {"tensors": {"positions": torch.zeros(B, 9, dtype=torch.long)}},
        {"tensors": {"positions": torch.zeros(B, 3)}},
    ],
)
def test_a_damaged_file_is_called_so(damage: dict, model: LlamaForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "text.cache"
    cache = SlidingWindowCache(4, unrotated=True)
    read(model, cache, 7)
    save(cache, path, fingerprint="a")
    load(path, fingerprint="a")
    spoilt(path, **damage)
    with pytest.raises(BrokenFileError, match=r"make it again from its text$"):
        load(path, fingerprint="a")


def test_damaged_codes_are_called_so(model: LlamaForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "text.cache"
    for name, wrong in {"codes": torch.zeros(B, 2, 9, 2, 4), "scale": torch.zeros(3, 3), "low": None}.items():
        cache = QuantizedCache(8, group=2, residual=3)
        read(model, cache, 9)
        save(cache, path, fingerprint="a")
        spoilt(path, tensors={f"old.keys.1.{name}": wrong})
        with pytest.raises(BrokenFileError, match=r"make it again from its text$"):
            load(path, fingerprint="a")


def test_other_files_are_no_caches(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with replacing(path) as out:
        write_tensors(out, {"weight": torch.zeros(2)}, {"format": "pt"})
    with pytest.raises(BrokenFileError, match=r"is no cache that this version can read"):
        load(path, fingerprint="a")
    path.write_bytes(b"hello")
    with pytest.raises(BrokenFileError):
        load(path, fingerprint="a")
