"""Tiny Python functions, so that `def add(a, b):` is continued sensibly: name, docstring and body belong together."""

from random import Random

_ONE_VALUE = {  # name -> (docstring, expression of the parameter x)
    "double": ("Return twice {x}.", "{x} * 2"),
    "square": ("Return the square of {x}.", "{x} * {x}"),
    "increment": ("Return one more than {x}.", "{x} + 1"),
    "decrement": ("Return one less than {x}.", "{x} - 1"),
    "negate": ("Return {x} with the other sign.", "-{x}"),
    "is_even": ("Tell whether {x} is even.", "{x} % 2 == 0"),
    "is_odd": ("Tell whether {x} is odd.", "{x} % 2 == 1"),
    "is_positive": ("Tell whether {x} is above zero.", "{x} > 0"),
    "is_zero": ("Tell whether {x} is zero.", "{x} == 0"),
    "absolute": ("Return {x} without its sign.", "abs({x})"),
}
_TWO_VALUES = {
    "add": ("Return the sum of {x} and {y}.", "{x} + {y}"),
    "subtract": ("Return {x} minus {y}.", "{x} - {y}"),
    "multiply": ("Return the product of {x} and {y}.", "{x} * {y}"),
    "divide": ("Return {x} divided by {y}.", "{x} / {y}"),
    "power": ("Return {x} to the power of {y}.", "{x} ** {y}"),
    "remainder": ("Return the remainder of {x} divided by {y}.", "{x} % {y}"),
    "average": ("Return the mean of {x} and {y}.", "({x} + {y}) / 2"),
    "larger": ("Return the larger of {x} and {y}.", "max({x}, {y})"),
    "smaller": ("Return the smaller of {x} and {y}.", "min({x}, {y})"),
    "is_equal": ("Tell whether {x} and {y} are the same.", "{x} == {y}"),
    "distance": ("Return how far {x} is from {y}.", "abs({x} - {y})"),
}
_LIST = {
    "first": ("Return the first of the {x}.", "{x}[0]"),
    "last": ("Return the last of the {x}.", "{x}[-1]"),
    "count": ("Return how many {x} there are.", "len({x})"),
    "total": ("Return the sum of the {x}.", "sum({x})"),
    "largest": ("Return the largest of the {x}.", "max({x})"),
    "smallest": ("Return the smallest of the {x}.", "min({x})"),
    "mean": ("Return the mean of the {x}.", "sum({x}) / len({x})"),
    "in_order": ("Return the {x} in rising order.", "sorted({x})"),
    "backwards": ("Return the {x} from the last to the first.", "{x}[::-1]"),
    "is_empty": ("Tell whether there are no {x}.", "len({x}) == 0"),
}
_SHAPES = (
    (_ONE_VALUE, ("x", "n", "a", "value", "number")),
    (_TWO_VALUES, ("a b", "x y", "m n", "left right")),
    (_LIST, ("items", "numbers", "values", "words", "names")),
)


def functions(rng: Random) -> str:
    """One to three functions, most with a docstring."""
    return "\n\n\n".join(_function(rng) for _ in range(rng.randint(1, 3)))


def _function(rng: Random) -> str:
    table, parameters = rng.choice(_SHAPES)
    name, (purpose, expression) = rng.choice(list(table.items()))
    x, *rest = rng.choice(parameters).split()
    slots = {"x": x, "y": rest[0] if rest else ""}
    lines = [f"def {name}({', '.join((x, *rest))}):"]
    if rng.random() < 0.6:
        lines.append(f'    """{purpose.format(**slots)}"""')
    return "\n".join([*lines, f"    return {expression.format(**slots)}"])
