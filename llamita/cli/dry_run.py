"""`llamita train --dry-run`: the memory of each part of a run and of each saving, before anything is allocated."""

from dataclasses import replace
from typing import TYPE_CHECKING

from llamita.cli import terminal

if TYPE_CHECKING:
    from llamita.train.memory import Estimate
    from llamita.train.recipe import Recipe

MIB = 2**20
BESIDES = "tensors alone; Python and torch take about 300 MiB more"


def run(recipe: "Recipe", *, is_quiet: bool, offline: bool) -> int:
    """Print the parts, the peak, and the peak with each saving that the recipe lacks; with -q the peak's MiB."""
    with terminal.waiting("reading the data, and taking steps without memory", is_quiet=is_quiet):
        from llamita.train import memory
        from llamita.train.session import sizes

        recipe, config, *rows = sizes(recipe, offline=offline)
        recipe = replace(recipe, precision="fp32" if recipe.precision == "auto" else recipe.precision)
        data = sum(part.nbytes for some in rows for part in (some.inputs, some.targets, some.documents))
        found = memory.estimate(config, recipe)
        peak = found.peak + data
        if is_quiet:
            print(f"{peak / MIB:.0f}")
            return 0
        others = {name: one.peak + data for name, one in memory.with_savings(config, recipe).items()}
    terminal.note(_about(recipe, found))
    print("\n".join(table(found, data, others)))
    return 0


def _about(recipe: "Recipe", found: "Estimate") -> str:
    rows = min(recipe.rows, recipe.micro_rows)
    return (
        f"{recipe.task} by {recipe.method}, {found.parameters / 1e6:.1f} M parameters, {rows} x {recipe.length} tokens "
        f"at once, {recipe.optimizer}, {recipe.precision} products, {recipe.weights} weights"
    )


def table(found: "Estimate", data: int, others: dict[str, int]) -> list[str]:
    """The lines: parts, peak, and the peak with each saving. data: bytes of the rows. others: peaks by options."""
    each = max(found.layers)
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer state": found.optimizer,
        f"activations of {len(found.layers)} layers, {each / MIB:,.1f} each": sum(found.layers),
        "activations of embedding, mask and last norm": found.around,
        "logits of a chunk, and the loss's gradients": found.loss,
        "data": data,
    }
    peak = found.peak + data
    lines = [f"{'MiB':>10}", *(_line(size, name) for name, size in parts.items())]
    lines += [_line(peak, f"at most at once ({BESIDES})")]
    if others:
        lines += ["", f"{'MiB':>10}  at most at once with"]
        lines += [_line(size, f"{name} ({_change(size, peak)})") for name, size in others.items()]
    return lines


def _line(size: int, name: str) -> str:
    return f"{size / MIB:>10,.1f}  {name}"


def _change(size: int, peak: int) -> str:
    share = round(100 * (peak - size) / peak)
    return f"saves {share} %" if share > 0 else "saves nothing" if share == 0 else f"takes {-share} % more"
