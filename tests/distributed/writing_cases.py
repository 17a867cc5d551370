"""What two processes write with one model, next to what one writes."""

import io
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from llamita.cache import StaticCache
from llamita.checkpoint.gguf_save import save_gguf
from llamita.checkpoint.load import load_pretrained
from llamita.errors import LlamitaError
from llamita.llm import LLM
from llamita.loader import load
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.mesh import Degrees, processes
from llamita.parallel.shard import local
from llamita.parallel.tensor import shard_for_writing
from tests.distributed import command
from tests.distributed.tensor_cases import model_of

PROMPTS = ["Once upon a time", "The little llama was"]
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "max_tokens": 9},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 7, "max_tokens": 9},
    "beams": {"num_beams": 3, "max_tokens": 4},
    "penalties and logprobs": {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 2, "max_tokens": 5},
    "in a form": {"temperature": 0.0, "choice": ["yes", "no"]},
}
REFUSED: dict[str, dict[str, Any]] = {
    "quantize": {"quantize": "q8_0"}, "draft": {"draft": "cria"}, "compile": {"compile": "full"},
}  # fmt: skip


def writing(folder: str) -> dict[str, Any]:
    """Texts of one process and of two, how far their logits are, what is refused, and what is read of the file."""
    with processes(Degrees(tp=2)) as mesh:
        sharded, one = load(folder, device_mesh=mesh, device="cpu"), load(folder, kernels="off", device="cpu")
        ids = torch.randint(256, (3, 31), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logits = sharded.model(ids).logits - one.model(ids).logits
        found = {
            "texts": {name: (texts(one, options), texts(sharded, options)) for name, options in OPTIONS.items()},
            "logits": float(logits.abs().max()),
            "kept": sum(local(w).numel() for w in sharded.model.parameters()) / one.model.num_parameters(),
            "refused": {name: refusal(folder, mesh, options) for name, options in REFUSED.items()},
            "read": bytes_read(folder, mesh),
            "odd": {cache: (odd(None, cache), odd(mesh, cache)) for cache in (None, "static", "quantized")},
            "static": static_cache(folder, mesh),
            "gguf": gguf(folder, mesh),
        }
        several = sharded.generate(PROMPTS, **OPTIONS["greedy"])
        assert [one.token_ids for one in several] == [ids for ids, *_ in found["texts"]["greedy"][1]]
        return found


def commanded(*words: str) -> dict[str, Any]:
    """What a command line says, into which "Once upon" is piped; processes but the first have another text there."""
    piped = b"Once upon" if os.environ["RANK"] == "0" else b"Nobody reads this"
    sys.stdin = io.TextIOWrapper(io.BytesIO(piped))
    return command.run([*words])


def texts(llm: LLM, options: dict[str, Any]) -> list[Any]:
    """What follows each prompt: its tokens, its text, why it ended, and the tokens' logprobs to five digits."""
    found = [llm.generate(prompt, **options) for prompt in PROMPTS]
    noted = [[round(token.logprob, 5) for token in one.logprobs or ()] for one in found]
    return [(one.token_ids, one.text, one.finish_reason, some) for one, some in zip(found, noted, strict=True)]


def refusal(folder: str, mesh: Any, options: dict[str, Any]) -> str:
    """The sentence that refuses an option for a sharded model."""
    return _error(lambda: load(folder, device_mesh=mesh, **options))


def bytes_read(folder: str, mesh: Any) -> float:
    """The share of a checkpoint's bytes that a process's weights are; they must be the mapped file's own pages (Linux).

    What is mapped is read when it is touched, so nothing else of the file is.
    """
    model = LlamaForCausalLM.from_pretrained(folder, device="cpu", device_mesh=mesh)
    file = Path(folder) / "model.safetensors"
    maps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    pages = [range(*(int(end, 16) for end in ends.split("-"))) for ends in maps]
    weights = [local(weight) for weight in model.parameters()]
    assert all(any(weight.data_ptr() in some for some in pages) for weight in weights)
    return sum(weight.nbytes for weight in weights) / file.stat().st_size


def odd(mesh: Any, cache: str | None) -> Any:
    """What a model writes whose vocabulary and hidden size no two processes share evenly, into a cache of this kind."""
    model = model_of({"tie_word_embeddings": False}, torch.float32)
    if mesh is not None:
        shard_for_writing(model, mesh)
    ids = torch.arange(10).view(2, 5)
    return model.generate(ids, max_new_tokens=7, do_sample=False, eos_token_id=None, cache_implementation=cache)


def gguf(folder: str, mesh: Any) -> tuple[str, list[Any], list[Any]]:
    """The sentence for blocks that should stay blocks; texts of one process and of two where they are dequantized."""
    with TemporaryDirectory() as top:
        small, path = load_pretrained(folder, device="cpu"), Path(top, "small.gguf")
        save_gguf(small.model, small.tokenizer, path, "q8_0")
        options: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
        one, sharded = load(path, kernels="off", **options), load(path, device_mesh=mesh, **options)
        refused = _error(lambda: load(path, device_mesh=mesh))
        return refused, texts(one, OPTIONS["seeded"]), texts(sharded, OPTIONS["seeded"])


def static_cache(folder: str, mesh: Any) -> str:
    """The sentence for a StaticCache of all heads, where the model has half of them."""
    model = LlamaForCausalLM.from_pretrained(folder, device="cpu", device_mesh=mesh)
    cache = StaticCache(model.config, batch=1, capacity=8)
    return _error(lambda: model(torch.tensor([[1, 2]]), past_key_values=cache))


def _error(call: Any) -> str:
    try:
        call()
    except LlamitaError as error:
        return str(error)
    return ""
