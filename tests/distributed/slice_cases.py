"""What processes read of a checkpoint that they train together: `python -m tests.distributed.slice_cases`."""

import ctypes
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import torch
import torch._dynamo  # the first step of an optimizer imports it
from torch import distributed

from llamita.checkpoint.gguf_save import save_gguf
from llamita.checkpoint.load import load_pretrained, unread
from llamita.data.loader import Loader
from llamita.llm import LLM
from llamita.model import files
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel import slices
from llamita.parallel.mesh import Degrees, arranged
from llamita.parallel.shard import local
from llamita.train import run, savings, setup
from llamita.train.measure import resolved
from llamita.train.method import adapt
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from llamita.train.run_model import run_model
from llamita.train.shapes import first_weights
from llamita.train.tasks.reward import with_reward_head
from tests.distributed import group, work
from tests.distributed.work import take_steps
from tests.small import save_small_model
from tests.unit.train.tiny import CONFIG, make_rows

CPU = torch.device("cpu")
RECIPE = replace(work.RECIPE, batch_tokens=4 * 16, micro_rows=1)  # few passes: each costs tens of milliseconds
# Two embeddings and four layers that are large enough to measure: 30 MB in bf16; the vocabulary is odd.
LARGE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "tie_word_embeddings": False}
DEGREES = {
    "dp_shard 2, tied": (2, Degrees()), "tp 2": (2, Degrees(tp=2)), "2 x 2, tied": (4, Degrees(tp=2)),
    "pp 2": (2, Degrees(pp=2)), "pp 3, tied": (3, Degrees(pp=3)), "pp 2 x 2, tied": (4, Degrees(pp=2)),
}  # fmt: skip


# What is trained of a model that is read in parts.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "targets": "embed_tokens,q_proj"},
    "dora": {"method": "dora"},
    "dora, tp 2": {"method": "dora", "tp": 2},
    "dora, pp 2": {"method": "dora", "pp": 2, "targets": "layers.1.*_proj"},
    "reward": {"task": "reward"},
}


def begun(mesh: Any, degrees: Degrees, model: LlamaForCausalLM, read: Any = None) -> Run:
    """A run on a mesh of these degrees."""
    recipe = replace(RECIPE, tp=degrees.tp, pp=degrees.pp, steps=2)
    savings.prepare(model, recipe, processes=2, device=CPU)
    return run.start(recipe, model, Loader(make_rows(), seed=7), processes=arranged(mesh, degrees), read=read)


def equality(mesh: Any, degrees: Degrees, *, is_tied: bool) -> dict[str, bool]:
    """Whether first weights that come after the shards are the same, and the losses of two steps with them.

    Trial steps before them must leave nothing behind. With tp there are no more steps: DTensor plans each operation of
    bf16 and of an evaluation anew, for seconds.
    """
    changes = {"num_key_value_heads": 2, "num_hidden_layers": 3, "attention_dropout": 0.0}
    config = CONFIG.replace(tie_word_embeddings=is_tied, **changes)
    first = partial(first_weights, seed=3, device=CPU)
    whole = LlamaForCausalLM.without_weights(config)
    first(whole)
    early = begun(mesh, degrees, whole)
    late = begun(mesh, degrees, LlamaForCausalLM.without_weights(config), first)
    if distributed.get_world_size() < 4:  # each way to share alone: trial steps cost most of this
        precision = "auto" if degrees.tp == 1 else "fp32"
        resolved(replace(RECIPE, precision=precision, steps=None, minutes=0.01), late)
    weights = {name: local(weight).clone() for name, weight in late.weights().items()}
    same = all(torch.equal(local(weight), weights[name]) for name, weight in early.weights().items())
    losses = [] if degrees.tp > 1 else [take_steps(one, RECIPE, 2) for one in (early, late)]
    return {"weights": same and weights.keys() == early.weights().keys(), "losses": losses[:1] == losses[1:]}


def blocks(mesh: Any, degrees: Degrees, path: Path) -> bool:
    """Whether the parts of weights that a GGUF file holds in blocks are those of the whole dequantized model."""
    found = unread(path, dtype="float32", device=CPU)
    assert found is not None
    late = begun(mesh, degrees, found[0], found[2]).weights()
    early = begun(mesh, degrees, load_pretrained(path, dtype="float32").model).weights()
    return late.keys() == early.keys() and all(torch.equal(local(late[name]), local(early[name])) for name in late)


def adapted(mesh: Any, changes: dict[str, Any], folder: Path) -> dict[str, bool]:
    """Whether processes that read their parts of a frozen base, or of a reward model, have those of a whole one."""
    recipe = replace(RECIPE, model=str(folder), **changes)
    mesh = arranged(mesh, recipe.degrees)
    found, whole = run_model(recipe, folder, CPU, offline=True), load_pretrained(folder, dtype="float32").model
    if recipe.task == "reward":
        base, whole = "", cast("LlamaForCausalLM", with_reward_head(whole, seed=recipe.seed))
    else:
        base = adapt(whole, recipe.lora, block_format=None, seed=recipe.seed)
    loader = Loader(make_rows(), seed=7)
    early = run.start(recipe, whole, loader, processes=mesh, base=base)
    late = run.start(recipe, found.model, loader, processes=mesh, read=found.read)
    own, others = (dict(one.model.named_parameters()) for one in (late, early))
    return {
        "is unread": found.read is not None,
        "weights": own.keys() == others.keys() and all(torch.equal(local(w), local(own[n])) for n, w in others.items()),
        "trained": late.weights().keys() == early.weights().keys(),
        "base": late.base == early.base,
    }


def reading(mesh: Any, degrees: Degrees, folder: Path, load: Callable[..., Any]) -> dict[str, float]:
    """What a process reads of a file, and the most and the last memory of its own; in parts of the file's size.

    Its own: without pages of files, which the system may take away, or read more of, at any time.
    """
    size, read = (folder / "model.safetensors").stat().st_size, [0]

    def counting(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counted(weight: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
            found = function(weight, *given, **named)
            read[0] += 0 if found.is_meta else found.numel() * weight.itemsize
            return found

        setattr(module, name, counted)

    counting(slices, "own_part")  # of a matrix that is cut
    counting(files, "whole")  # of one that a stage has whole
    ctypes.CDLL(None).malloc_trim(0)  # or a model finds room in what one before it has left
    own, sizes, is_loaded = _own(), list[int](), Event()

    def sample() -> None:
        while not is_loaded.wait(0.001):
            sizes.append(_own())

    sampler = Thread(target=sample)
    sampler.start()
    kept = load(mesh, degrees, folder)
    is_loaded.set()
    sampler.join()
    found = {"peak": max(sizes, default=own) - own, "own": _own() - own, "read": read[0]}
    assert kept is not None
    return {name: value / size for name, value in found.items()}


def sharded(mesh: Any, degrees: Degrees, folder: Path) -> Run:
    """A run whose processes read their parts."""
    found = unread(folder, dtype="float32", device=CPU)
    assert found is not None
    return begun(mesh, degrees, found[0], found[2])


def plain(mesh: Any, degrees: Degrees, folder: Path, method: str = "full") -> Run:
    """A run whose recipe leaves open what trial steps decide."""
    text = folder / f"text-{distributed.get_rank()}.txt"
    text.write_text("the cat sat on the mat. " * 99, encoding="utf-8")
    recipe = Recipe(
        data=(str(text),), model=str(folder), minutes=0.01, precision="fp32", length=16, batch_tokens=32,
        optimizer="adamw", method=method, rank=4,
    )  # fmt: skip
    return setup.begin(recipe, folder / "out", processes=mesh).run


def whole(mesh: Any, degrees: Degrees, folder: Path) -> Run:
    """A run whose processes read the whole model before."""
    return begun(mesh, degrees, load_pretrained(folder, dtype="float32").model)


def written(mesh: Any, degrees: Degrees, folder: Path) -> LLM:
    """A model to write with, in another dtype than the file's, as a copy."""
    return LLM(load_pretrained(folder, dtype="float32", device_mesh=arranged(mesh, degrees)))


def _own() -> int:
    """The bytes of this process's own memory."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def check() -> dict[str, Any]:
    """All of it."""
    found: dict[str, Any] = {}
    for name, (count, degrees) in DEGREES.items():
        found[name] = group.on(count, partial(equality, degrees=degrees, is_tied="tied" in name))
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        save_small_model(folder)
        small = load_pretrained(folder)
        path = save_gguf(small.model, small.tokenizer, folder / "small.gguf", "q8_0")
        for name, degrees in {"dp_shard 2": Degrees(), "tp 2": Degrees(tp=2), "pp 2": Degrees(pp=2)}.items():
            found[f"blocks, {name}"] = group.on(2, partial(blocks, degrees=degrees, path=path))
        for name, changes in METHODS.items():
            found[f"adapted, {name}"] = group.on(2, partial(adapted, changes=changes, folder=folder))
        config = LlamaForCausalLM.from_pretrained(folder).config.replace(vocab_size=4097, **LARGE)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        ways: dict[str, tuple[Callable[..., Any], Degrees]] = {
            "whole": (whole, Degrees()),
            "dp_shard 2": (sharded, Degrees()),
            "tp 2": (sharded, Degrees(tp=2)),
            "pp 2": (sharded, Degrees(pp=2)),
            "plain": (plain, Degrees()),
            "lora": (partial(plain, method="lora"), Degrees()),
            "written": (written, Degrees(tp=2)),
        }
        for name, (load, degrees) in ways.items():
            found[f"read, {name}"] = group.on(2, partial(reading, degrees=degrees, folder=folder, load=load))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(check()))
