"""Which weight takes which format: the mixes of llama.cpp, as tables.

A rule is a glob on a weight's module name, a format, and in which layers it holds. The first that fits decides.
Source: llama_tensor_get_type and tensor_type_fallback in llama.cpp's src/llama-quant.cpp, for Llamas without experts
and without an importance matrix. A name means what llama-quantize makes of it: q4_k is q4_k_m, and where weights take
fewer than 6 bits, the head takes 6. For one format everywhere, give {"*": "q4_k"}.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.kernels.blocks import FORMATS

INT8 = "int8"
FALLBACK = "q8_0"  # where rows do not fill blocks of 256; llama.cpp takes its 5-bit formats of 32 for q4_k and q5_k
HEAD = "head"  # stands for the weight that makes the logits: lm_head, or an embedding that is also the head


def always(layer: int, config: LlamaConfig) -> bool:
    """In every layer."""
    return True


def more_bits(layer: int, config: LlamaConfig) -> bool:
    """In the first and the last eighth of the layers, and in every third between."""
    layers = config.num_hidden_layers
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def first_eighth(layer: int, config: LlamaConfig) -> bool:
    """In the first eighth of the layers."""
    return layer < config.num_hidden_layers // 8


def first_four(layer: int, config: LlamaConfig) -> bool:
    """In layers 0 to 3."""
    return layer < 4


def of_70b(layer: int, config: LlamaConfig) -> bool:
    """In models of 70B, whose value projections are an eighth of the query's, so that more bits cost little."""
    return config.num_hidden_layers == 80 and config.num_key_value_heads != config.num_attention_heads


def with_few_values(layer: int, config: LlamaConfig) -> bool:
    """In models of four or more query heads to each of the values, whose projections are then small."""
    return config.num_attention_heads >= 4 * config.num_key_value_heads


@dataclass(frozen=True)
class Rule:
    """Weights named like `glob` take `form` in the layers where `holds`."""

    glob: str
    form: str
    holds: Callable[[int, LlamaConfig], bool] = always


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


def _alone(form: str) -> tuple[Rule, ...]:
    """A format for every weight, but for the head, which takes 6 bits where the others take fewer."""
    whole = Rule("*", form)
    return (whole,) if FORMATS[form].layout.bits > 6 else (Rule(HEAD, "q6_k"), whole)


RECIPES: Mapping[str, tuple[Rule, ...]] = {
    **{form: _alone(form) for form in FORMATS if form not in SYNONYMS},
    **MIXES,
    INT8: (Rule("*", INT8),),
}

Recipe = str | Mapping[str, str]


def rules(recipe: Recipe) -> tuple[Rule, ...]:
    """A recipe's rules, by its name in any case, or from one's own mapping of globs to formats.

    Raises UsageError for an unknown name or format.
    """
    if isinstance(recipe, str):
        name = SYNONYMS.get(recipe.lower(), recipe.lower())
        if name not in RECIPES:
            raise _unknown("recipe", recipe, [*RECIPES, *SYNONYMS])
        return RECIPES[name]
    for form in recipe.values():
        if form not in (*FORMATS, INT8):
            raise _unknown("format", form, [*FORMATS, INT8])
    return tuple(Rule(glob, form) for glob, form in recipe.items())


def choose(
    recipe: Recipe, name: str, shape: tuple[int, int], config: LlamaConfig, *, is_head: bool = False
) -> str | None:
    """The format of one weight of shape (N, K), None for one that stays as it is.

    name: its module's, such as "model.layers.3.mlp.down_proj". is_head: it makes the logits, alone or tied.
    Rows that are no multiple of a format's block take q8_0, and where they are none of 32 either, stay.
    """
    layer = next((int(part) for part in name.split(".") if part.isdecimal()), 0)
    for rule in rules(recipe):
        fits = is_head if rule.glob == HEAD else _matches(name, rule.glob)
        if fits and rule.holds(layer, config):
            return _fitting(rule.form, shape[1])
    return None


def _fitting(form: str, columns: int) -> str | None:
    if form == INT8 or columns % FORMATS[form].block == 0:
        return form
    return FALLBACK if columns % FORMATS[FALLBACK].block == 0 else None


def _matches(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name, f"*.{glob}")


def _unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    known = list(known)
    near = get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"there is no {kind} {name!r} to quantize by: {guess}known are {', '.join(known)}")
