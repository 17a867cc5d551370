"""Headers whose numbers and names were changed: the model is refused in one sentence, or has the very same weights."""

import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import llamita
from llamita.checkpoint.gguf import load_gguf
from llamita.checkpoint.gguf_save import save_gguf
from llamita.errors import LlamitaError
from llamita.files.gguf import GgufFile
from llamita.files.gguf_types import STORAGES
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.surgery import quantized_layers

ROUNDS = 60
NUMBERS = (0, 1, 2, 3, 31, 32, 33, 64, 255, 256, 2**31 - 1, 2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64 - 1)
TYPES = (*(storage.number for storage in STORAGES.values()), 4, 5, 9, 31, 36, 42, 2**32 - 1)
Place = tuple[int, str]  # of a number in the header, and its kind in struct's notation


def weights(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """Every weight of a model as it computes."""
    plain = {name: parameter.detach().float() for name, parameter in model.named_parameters(remove_duplicate=False)}
    return plain | {f"{name}.weight": layer.matrix.dequantize() for name, layer in quantized_layers(model)}


def equal_or_refused(load: Callable[[], LlamaForCausalLM], expected: dict[str, Tensor], damage: str) -> bool:
    """Load a damaged file: True for the same weights, False for one sentence; anything else fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = weights(load())
        except LlamitaError as error:
            assert "\n" not in str(error), damage
            assert len(str(error)) < 600, damage
            return False
    assert found.keys() == expected.keys(), damage
    assert all(torch.equal(found[name], expected[name]) for name in expected), damage
    return True


def places(path: Path) -> tuple[dict[str, list[Place]], list[Place]]:
    """Where the header of a GGUF file has each tensor's numbers, and where it has their names."""
    content, file = path.read_bytes(), GgufFile(path)
    found: dict[str, list[Place]] = {"axes": [], "shape": [], "type": [], "offset": []}
    names = []
    for name, entry in file.entries.items():
        start = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8
        names.append((start, f"{len(name)}s"))
        place, axes = start + len(name), len(entry.shape)
        found["axes"].append((place, "I"))
        found["shape"] += [(place + 4 + 8 * axis, "Q") for axis in range(axes)]
        found["type"].append((place + 4 + 8 * axes, "I"))
        found["offset"].append((place + 8 + 8 * axes, "Q"))
    return found, names


@pytest.mark.parametrize("form", ["f32", "q8_0"])
def test_ts4_gguf(form: str, small_path: Path, tmp_path: Path) -> None:
    small = llamita.load(small_path, kernels="off")
    good = save_gguf(small.model, small.tokenizer, tmp_path / "good.gguf", form)
    content, expected = good.read_bytes(), weights(load_gguf(good)[0])
    numbers, names = places(good)
    chance, path, outcomes = random.Random(form), tmp_path / "x.gguf", set()
    for _ in range(ROUNDS):
        changed, damage = bytearray(content), []
        for _ in range(chance.choice((1, 1, 2))):
            kind = chance.choice((*numbers, "name"))
            if kind in numbers:
                place, letter = chance.choice(numbers[kind])
                (old,) = struct.unpack_from(f"<{letter}", changed, place)
                near = (old - 1, old + 1, old * 2, old // 2, old ^ 32)
                new = chance.choice(TYPES if kind == "type" else (*NUMBERS, *near)) % 2 ** (8 * struct.calcsize(letter))
                struct.pack_into(f"<{letter}", changed, place, new)
            else:
                place, length = chance.choice(names)
                new = chance.randrange(256)
                changed[place + chance.randrange(int(length[:-1]))] = new
            damage.append((kind, new))
        path.write_bytes(changed)
        outcomes.add(equal_or_refused(lambda: load_gguf(path)[0], expected, str(damage)))
    assert outcomes == {True, False}


def test_ts3_safetensors(small_path: Path, tmp_path: Path) -> None:
    good = (small_path / "model.safetensors").read_bytes()
    for file in small_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (length,) = struct.unpack_from("<Q", good)
    chance, path, outcomes = random.Random(0), tmp_path / "model.safetensors", set()
    load = lambda: llamita.load(tmp_path, kernels="off").model  # noqa: E731
    expected = weights(load())
    for _ in range(ROUNDS):
        changed = bytearray(good)
        places = [chance.randrange(8 + length) for _ in range(chance.choice((1, 1, 2, 8)))]
        for place in places:
            changed[place] = chance.choice(b'0123456789[]{}",:aF \x00\xff')
        path.write_bytes(changed)
        outcomes.add(equal_or_refused(load, expected, str(places)))
    assert False in outcomes
