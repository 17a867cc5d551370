"""Words that names no longer use: they had many meanings, or none of the field's. CONTRIBUTING has the glossary."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping

from tests.architecture.source import Function, Module

# Folders whose names are clean of the words below.
FOLDERS = frozenset({
    "adapters", "attention", "bench", "bridge", "cache", "checkpoint", "cli", "config", "context", "data", "engine",
    "evaluation", "files", "generation", "model", "parallel", "plans", "quant", "sampling", "server", "structured",
    "tokenizer", "train",
})  # fmt: skip

# Part of a name -> what to say instead.
WORDS: Mapping[str, str] = {
    "place": "index, position, slot or offset",
    "room": "capacity, buffer or limit",
    "kept": "recorded, accepted or length",
    "told": "reported or given",
    "trail": "state, history or aligner",
    "trial": "measurement or check",
    "likely": "logprob, probability or entry",
    "eights": "accumulators",
    "idle": "unused",
    "team": "threads",
    "beside": "joined or extra",
    "anew": "again or reset",
    "foretold": "logits",
    "recount": "relative_positions",
    "weigh": "attend_to",
    "obey": "run_command",
    "foretell": "predict or logits",
    "foretells": "predicts or logits",
    "likeliest": "greedy_token or max_probability",
    "untold": "no_progress",
}
# Folder -> words that are retired in it alone.
WORDS_OF: Mapping[str, Mapping[str, str]] = {
    "quant": {"form": "format_name or block_format"},
    "bench": {"form": "format"},
    "engine": {"guess": "draft", "guesses": "drafts", "guessed": "drafted"},
    "generation": {"stage": "processor", "guess": "draft", "guesses": "drafts", "guessed": "drafted"},
}
# Word of a docstring, comment or message -> what to say instead.
PROSE: Mapping[str, str] = {
    "beside": "with, next to or compared with",
    "behind": "after",
    "anew": "again",
    "told": "reported or given",
    "foretell": "predict",
    "foretold": "predicted",
    "likeliest": "most probable",
    "so many": "the number, by its name",
    "of ours": "our",
    "guessing ahead": "speculative decoding",
}
# What holds prose: comments and strings, which Python 3.12 and later cut at the fields of an f-string.
TEXT = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
# Whole name of a class or module -> what it is called now.
NAMES: Mapping[str, str] = {
    "Distribution": "SamplingParams",
    "Feed": "ModelRunner",
    "Slots": "RaggedBatch",
    "Trails": "StatelessConstraint",
    "Ledger": "RaggedScoreRecorder",
    "Lockstep": "ColumnStreamer",
    "Drafter": "Proposer",
    "Guesser": "Proposer",
    "Assistant": "HFDraftProposer",
    "Verdict": "VerifyResult",
    "Chain": "LogitsProcessorList",
    "Watched": "Observer",
    "Asked": "Measurable",
    "Fresh": "ProcessPerTurn",
    "Job": "GenerationRequest or Run",
    "convention": "hf",
    "failure": "errors",
    "card": "model_card",
    "peaks": "peak_memory",
    "products": "gemm",
    "reading": "bandwidth",
    "pieces": "token_bytes",
    "Store": "QuantizedMatrix",
    "Matrix": "QuantizedMatrix",
    "RowMatrix": "Int8Rows",
    "PlainStore": "PlainBlocks",
    "CpuStore": "CpuBlocks",
    "GpuStore": "GpuBlocks",
    "stores": "block_matrix",
    "Choice": "QuantizationChoice or TokenSelector",
    "Told": "Progress",
    "Here": "InProcess",
    "FewRows": "RowPaddedLinear",
    "WholeVectors": "VectorPaddedActivation",
    "Whole": "CompiledForward",
    "Halves": "CompiledLayerParts",
}


def retired(
    modules: list[Module],
    words: Mapping[str, str] = WORDS,
    names: Mapping[str, str] = NAMES,
    folders: frozenset[str] = FOLDERS,
    words_of: Mapping[str, Mapping[str, str]] = WORDS_OF,
) -> list[str]:
    """Modules, classes, functions, parameters and attributes whose names have a retired word."""
    complaints = []
    for module in modules:
        here = {**words, **words_of.get(module.room, {})}
        for line, name, is_noun in _names(module) if module.room in folders else ():
            parts = [part.removesuffix("s") if part not in here else part for part in name.lower().split("_")]
            found = next((part for part in parts if part in here), None)
            if found is not None:
                complaints.append(f"{module.name}:{line} {name}: say {here[found]}")
            elif is_noun and name in names:
                complaints.append(f"{module.name}:{line} {name}: it is called {names[name]}")
    return complaints


def unplain(modules: list[Module], prose: Mapping[str, str] = PROSE) -> list[str]:
    """Docstrings, comments and messages that have a retired word.

    A part of a flag, as in --beside-load, and a name in backticks are no prose.
    """
    words = "|".join(prose).replace(" ", r"\s+")
    pattern = re.compile(rf"(?<![\w`-])({words})(?![\w`-])", re.IGNORECASE)
    return [
        f"{module.name}:{token.start[0]} {found[0]}: say {prose[' '.join(found[0].lower().split())]}"
        for module in modules
        for token in tokenize.generate_tokens(io.StringIO(module.text).readline)
        if token.type in TEXT and (found := pattern.search(token.string))
    ]


def _names(module: Module) -> Iterator[tuple[int, str, bool]]:
    """Line, name, and whether it is a module's or a class's."""
    yield 1, module.name.rpartition(".")[2], True
    for node in module.nodes:
        if isinstance(node, ast.ClassDef | Function):
            yield node.lineno, node.name, isinstance(node, ast.ClassDef)
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg, False
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr, False
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id, False
