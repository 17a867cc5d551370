"""Recipes: the format of each weight, as tables of llama.cpp's mixes.

A rule is a glob on a weight's module name, a format, and the layers in which it applies. The first rule that matches
decides. Source: llama_tensor_get_type and tensor_type_fallback in llama.cpp's src/llama-quant.cpp, for Llamas without
experts and without an importance matrix. A name means the same as in llama-quantize: q4_k is q4_k_m, and the head takes
6 bits if the other weights take fewer. {"*": "q4_k"} gives every weight one format.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.kernels.blocks import FORMATS
from llamita.quant.int8_matrix import INT8

FALLBACK = "q8_0"  # for rows that do not fill blocks of 256; llama.cpp takes 5-bit blocks of 32 for q4_k and q5_k
HEAD = "head"  # names the weight that computes the logits: lm_head, or an embedding that is tied to it


def always(layer: int, config: LlamaConfig) -> bool:
    """In every layer."""
    return True


def more_bits(layer: int, config: LlamaConfig) -> bool:
    """In the first and the last eighth of the layers, and in every third layer between them."""
    layers = config.num_hidden_layers
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def first_eighth(layer: int, config: LlamaConfig) -> bool:
    """In the first eighth of the layers."""
    return layer < config.num_hidden_layers // 8


def first_four(layer: int, config: LlamaConfig) -> bool:
    """In layers 0 to 3."""
    return layer < 4


def of_70b(layer: int, config: LlamaConfig) -> bool:
    """In models of 70B: a value projection is an eighth of a query projection, so more bits cost little."""
    return config.num_hidden_layers == 80 and config.num_key_value_heads != config.num_attention_heads


def with_few_values(layer: int, config: LlamaConfig) -> bool:
    """In models with four or more query heads for each value head: the value projections are small."""
    return config.num_attention_heads >= 4 * config.num_key_value_heads


@dataclass(frozen=True)
class Rule:
    """Weights whose names match `glob` take the format in the layers for which `applies` is true."""

    glob: str
    format_name: str
    applies: Callable[[int, LlamaConfig], bool] = always


SYNONYMS: Mapping[str, str] = {"q4_k": "q4_k_m", "q5_k": "q5_k_m"}
MIXES: Mapping[str, tuple[Rule, ...]] = {
    "iq4_nl": (
        Rule(HEAD, "q6_k"),
        Rule("*.v_proj", "q5_k", with_few_values),
        Rule("*.down_proj", "q5_k", first_eighth),
        Rule("*", "iq4_nl"),
    ),
    "q5_k_m": (
        Rule(HEAD, "q6_k"),
        Rule("*.v_proj", "q6_k", more_bits),
        Rule("*.down_proj", "q6_k", more_bits),
        Rule("*", "q5_k"),
    ),
    "q5_k_s": (Rule(HEAD, "q6_k"), Rule("*", "q5_k")),
    "q4_k_m": (
        Rule(HEAD, "q6_k"),
        Rule("*.v_proj", "q6_k", more_bits),
        Rule("*.v_proj", "q5_k", of_70b),
        Rule("*.down_proj", "q6_k", more_bits),
        Rule("*", "q4_k"),
    ),
    "q4_k_s": (
        Rule(HEAD, "q6_k"),
        Rule("*.v_proj", "q5_k", first_four),
        Rule("*.v_proj", "q5_k", of_70b),
        Rule("*.down_proj", "q5_k", first_eighth),
        Rule("*", "q4_k"),
    ),
}


def _single(format_name: str) -> tuple[Rule, ...]:
    """One format for every weight, except that the head takes at least 6 bits."""
    rule = Rule("*", format_name)
    return (rule,) if FORMATS[format_name].layout.bits > 6 else (Rule(HEAD, "q6_k"), rule)


RECIPES: Mapping[str, tuple[Rule, ...]] = {
    **{name: _single(name) for name in FORMATS if name not in SYNONYMS},
    **MIXES,
    INT8: (Rule("*", INT8),),
}

Recipe = str | Mapping[str, str]


def rules(recipe: Recipe) -> tuple[Rule, ...]:
    """The rules of a recipe, given by name (in any case) or as a mapping of globs to formats.

    Raises UsageError for an unknown name or format.
    """
    if isinstance(recipe, str):
        name = SYNONYMS.get(recipe.lower(), recipe.lower())
        if name not in RECIPES:
            raise _unknown("recipe", recipe, [*RECIPES, *SYNONYMS])
        return RECIPES[name]
    for name in recipe.values():
        if name not in (*FORMATS, INT8):
            raise _unknown("format", name, [*FORMATS, INT8])
    return tuple(Rule(glob, name) for glob, name in recipe.items())


def choose(
    recipe: Recipe, name: str, shape: tuple[int, int], config: LlamaConfig, *, is_head: bool = False
) -> str | None:
    """Choose the format of one weight of shape (N, K); None leaves it as it is.

    name: of its module, such as "model.layers.3.mlp.down_proj". is_head: the weight computes the logits, tied or not.
    Columns that are no multiple of the format's block take q8_0; if they are no multiple of 32, the weight stays.
    """
    layer = next((int(part) for part in name.split(".") if part.isdecimal()), 0)
    for rule in rules(recipe):
        matches = is_head if rule.glob == HEAD else _matches(name, rule.glob)
        if matches and rule.applies(layer, config):
            return _or_fallback(rule.format_name, shape[1])
    return None


def _or_fallback(format_name: str, columns: int) -> str | None:
    if format_name == INT8 or columns % FORMATS[format_name].block == 0:
        return format_name
    return FALLBACK if columns % FORMATS[FALLBACK].block == 0 else None


def _matches(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name, f"*.{glob}")


def _unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    known = list(known)
    near = get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"there is no {kind} {name!r} for quantizing: {guess}use one of {', '.join(known)}")
