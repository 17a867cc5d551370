"""`llamita train --dry-run`: the memory of each part of a run and of each saving, before anything is allocated."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from llamita.cli import terminal
from llamita.errors import UsageError

if TYPE_CHECKING:
    from llamita.config import LlamaConfig
    from llamita.train.memory import Estimate
    from llamita.train.rank_memory import RankEstimate
    from llamita.train.recipe import Recipe

MIB = 2**20
MOST = 2**20  # processes
BESIDES = "tensors alone; Python and torch take about 300 MiB more"


def run(recipe: "Recipe", *, processes: int | None, is_quiet: bool, offline: bool) -> int:
    """Print the parts, the peak, and the peak with each saving that the recipe lacks; with -q the peak's MiB.

    processes: how many train, None for those of torchrun, or as many as share the model; of several, that of one.
    """
    with terminal.waiting("reading the data, and taking steps without memory", is_quiet=is_quiet):
        from llamita.train.setup import sizes

        config, rows = sizes(recipe, offline=offline)
        recipe = replace(rows.recipe, precision="fp32" if recipe.precision == "auto" else recipe.precision)
        both = (rows.trained, rows.held_out)
        data = sum(part.nbytes for some in both for part in (some.inputs, some.targets, some.documents))
        count = processes or int(os.environ.get("WORLD_SIZE", recipe.shared))
        found, others = _estimates(config, recipe, count, with_savings=not is_quiet)
    if is_quiet:
        print(f"{(found.peak + data) / MIB:.0f}")
        return 0
    terminal.note(_about(recipe, found, count))
    print("\n".join(table(found, data, {name: one.peak + data for name, one in others.items()})))
    return 0


def check_processes(processes: int | None, *, is_dry: bool) -> None:
    """Raise UsageError for a number of processes that is none, or where none is asked for."""
    if processes is not None and not is_dry:
        raise UsageError("--processes is of --dry-run: start several by torchrun --nproc-per-node N -m llamita train")
    if processes is not None and not 1 <= processes <= MOST:
        raise UsageError(f"processes is {processes}: it must be from 1 to {MOST}")


def _estimates(
    config: "LlamaConfig", recipe: "Recipe", processes: int, *, with_savings: bool
) -> "tuple[Estimate | RankEstimate, dict[str, Estimate] | dict[str, RankEstimate]]":
    """The estimate of a recipe, and those with each saving; of several processes, of the one that takes the most."""
    from llamita.train import memory, rank_memory

    if processes == 1 and recipe.shared == 1:
        found = memory.estimate(config, recipe)
        return found, memory.with_savings(config, recipe) if with_savings else {}
    recipes = memory.savings_of(recipe) if with_savings else {}
    own, *others = rank_memory.estimate_ranks(config, recipe, processes, others=list(recipes.values()))
    assert own is not None, "it would have been refused"
    return own, {name: one for name, one in zip(recipes, others, strict=True) if one is not None}


def _about(recipe: "Recipe", found: "Estimate | RankEstimate", processes: int) -> str:
    rows = min(recipe.rows, recipe.micro_rows)
    one = f"; one of {processes} processes, that which takes the most" if processes > 1 else ""
    return (
        f"{recipe.task} by {recipe.method}, {found.parameters / 1e6:.1f} M parameters, {rows} x {recipe.length} tokens "
        f"at once, {recipe.optimizer}, {recipe.precision} products, {recipe.weights} weights{one}"
    )


def table(found: "Estimate | RankEstimate", data: int, others: dict[str, int]) -> list[str]:
    """The lines: parts, peak, and the peak with each saving. data: bytes of the rows. others: peaks by options."""
    parts = {**found.parts, "data": data}
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
