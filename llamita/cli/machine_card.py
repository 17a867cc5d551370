"""The facts of this machine that decide how kernels of the CPU run on it."""

from typing import Any

import torch

from llamita.bench.report import machine
from llamita.kernels.cpu import isa
from llamita.kernels.cpu.runtime import code_cache

OPERATIONS = {
    "dot_u8s8": "products of bytes",
    "dot_bf16": "products of bf16",
    "fma": "multiply-add",
    "fp16": "fp16 to fp32 and back",
    "lookup": "table of 16 bytes",
}


def facts() -> dict[str, Any]:
    """What there is to say, as JSON-like data; raises what `isa.target` raises for a wrong LLAMITA_CPU."""
    row, (triple, _, _), (_, host, _) = isa.chosen(), isa.target(), isa.host()
    folder, count = code_cache.contents()
    return {
        "processor": machine(0)["cpu"],
        "llvm": {"triple": triple, "processor": host},
        "threads": torch.get_num_threads(),
        "instruction_set": row.name,
        "named_by": f"{isa.VARIABLE}={isa.named()}" if isa.named() else None,
        "operations": row.ways,
        "runs": {each.cpu: each.name for each in isa.runnable()},
        "kernels": {"folder": folder and str(folder), "kept": count},
    }


def sections(card: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The card's lines under their titles."""
    llvm, kernels = card["llvm"], card["kernels"]
    why = f"as {card['named_by']} says" if card["named_by"] else "the best that this machine has"
    kept = f"{kernels['kept']} in {kernels['folder']}" if kernels["folder"] else "nowhere, as there is no home folder"
    return {
        "machine": [
            ("processor", f"{card['processor']}, for LLVM {llvm['processor']} ({llvm['triple']})"),
            ("threads", f"{card['threads']}"),
        ],
        "kernels": [
            ("instruction set", f"{card['instruction_set']}, {why}"),
            *((OPERATIONS[name], way) for name, way in card["operations"].items()),
            ("compiled", kept),
        ],
        f"for {isa.VARIABLE}": list(card["runs"].items()),
    }
