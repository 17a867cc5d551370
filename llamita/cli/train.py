"""`llamita train`: train a model, on text, prompts with answers, or chats."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.cli import dry_run, errors, ranks, rewind, terminal, train_progress, train_report, train_settings
from llamita.errors import UsageError
from llamita.files.disk import named_path

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamita.train.metrics import Metrics
    from llamita.train.recipe import Recipe
    from llamita.train.session import Session

NAME = "train"
HELP = "train a model on text, prompts with answers, or chats"
EXAMPLES = """\
  llamita train
  llamita train book.txt --shape micro --minutes 10 -o my-model
  llamita train chats.jsonl --model cria --lr 2e-3 --steps 200 -o my-cria
  llamita train --resume -o my-model
  llamita train rewind --step 150 -o my-model
"""


@dataclass(frozen=True)
class Verb:
    """A verb that trains, and what it does in its own way.

    output: the folder that it writes by default. settings: what the options do not say. begin, end: called before the
    first step and after the last, with the session and `is_quiet`; end also gets what begin returned, after the
    session. texts: the help of the data and of settings that are not as in `llamita train`.
    """

    name: str
    output: str
    settings: Callable[[argparse.Namespace], dict[str, Any]]
    begin: Callable[..., Any]
    end: Callable[..., None]
    texts: Mapping[str, str] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser, verb: Verb | None = None) -> None:
    """What to train on, where it goes, and the settings of a recipe."""
    verb = verb or TRAIN
    what = (
        "text, or .jsonl, .json or .parquet with text, prompt and completion, or messages; hf:NAME for a dataset of "
        "Hugging Face (default: this Python's docstrings)"
    )
    parser.add_argument("data", nargs="*", metavar="FILE", help=verb.texts.get("data", what))
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help=f"the folder to write (default: {verb.output}, or the next)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say how much memory it takes, without taking it")
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="of --dry-run: how many processes train (default: as many as --tp, --cp and --pp need, or torchrun's)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in the -o folder, exactly")
    parser.add_argument(
        "--print-recipe", action="store_true", help="print all settings as a recipe file, and train nothing"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="also write event files for TensorBoard, to training/tensorboard"
    )
    parser.add_argument(
        "--check-loss",
        action="store_true",
        help="first compare a step in micro-batches with the same rows as one batch, and stop where they differ",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="after the word rewind: the step of the run in -o to write, exactly"
    )
    parser.add_argument("--recipe", metavar="FILE", help="a TOML file of the settings below; options overrule it")
    train_settings.add_options(parser, verb.texts)


def run(args: argparse.Namespace, verb: Verb | None = None) -> int:
    """Prepare the run, train, and show what the model writes; 130 where a signal ended it early."""
    verb = verb or TRAIN
    with errors.leaving_at_once(), terminal.waiting("loading torch", is_quiet=args.quiet or ranks.is_other()):
        from llamita.train import setup  # noqa: F401
    dry_run.check_processes(args.processes, is_dry=args.dry_run)
    if args.dry_run and not rewind.is_meant(args):
        return _dry_run(args, verb)
    with ranks.joined(args.device) as processes:
        if rewind.is_meant(args):
            return rewind.run(args, processes, default=_default_folder(verb, is_new=False))
        return _run(args, verb, processes)


def _dry_run(args: argparse.Namespace, verb: Verb) -> int:
    """Say the memory of a run, in one process, which joins no other."""
    if ranks.is_other():
        return 0
    recipe, _ = _asked(args, verb)
    if args.print_recipe:
        print(recipe.to_toml(), end="")
        return 0
    return dry_run.run(recipe, processes=args.processes, is_quiet=args.quiet, offline=args.offline)


def _run(args: argparse.Namespace, verb: Verb, processes: "DeviceMesh | None") -> int:
    from llamita.parallel import mesh
    from llamita.train import state, tensorboard
    from llamita.train.session import INSIDE

    recipe, folder = mesh.from_first(lambda: _asked(args, verb))
    if args.print_recipe:
        print(recipe.to_toml(), end="")
        return 0
    if args.tensorboard:
        tensorboard.library()  # before the work starts
    processes = mesh.arranged(processes, recipe.degrees)
    with ExitStack() as stack:

        def lock() -> None:
            mesh.from_first(lambda: stack.enter_context(state.locked(folder / INSIDE)))

        if args.resume:
            lock()
        with terminal.waiting("reading the data and measuring this machine", is_quiet=args.quiet):
            session = _session(args, recipe, folder, processes)
        if not args.resume:  # only now, so that what is wrong with the data leaves no folder
            lock()
        if args.check_loss:
            _check_loss(session, is_quiet=args.quiet)
        if args.tensorboard and not ranks.is_other():
            write = stack.enter_context(tensorboard.tensorboard(folder / INSIDE / "tensorboard"))
            return _train(session, verb, write, is_quiet=args.quiet)
        return _train(session, verb, is_quiet=args.quiet)


def _check_loss(session: "Session", *, is_quiet: bool) -> None:
    from llamita.train.check_loss import check_loss

    found = check_loss(session.run, session.recipe)
    if not is_quiet:
        terminal.note(str(found))


def _train(
    session: "Session", verb: Verb, observer: "Callable[[Metrics], None]" = lambda metrics: None, *, is_quiet: bool
) -> int:
    from llamita.train import stopping

    if not is_quiet:
        terminal.note(train_report.first_line(session))
    before = verb.begin(session, is_quiet=is_quiet)
    with stopping.stopped_by_signals() as should_stop, train_progress.shown(session, is_quiet=is_quiet) as show:
        for metrics in session.steps(should_stop):
            show(metrics)
            observer(metrics)
    if session.run.step < session.run.steps:
        here = f"{ranks.command()} {verb.name} --resume -o {session.folder}"
        terminal.note(f"stopped and saved at step {session.run.step}: {here} goes on")
        return errors.INTERRUPTED
    if not ranks.is_other():
        verb.end(session, before, is_quiet=is_quiet)
    return 0


def _asked(args: argparse.Namespace, verb: Verb) -> "tuple[Recipe, Path]":
    """The recipe and the folder that the options, the recipe file and the resumed run say."""
    from llamita.train.recipe_file import make_recipe, read_recipe
    from llamita.train.setup import resumed_recipe

    own = {} if args.resume else verb.settings(args)
    # A run that goes on has its settings; what the environment says is for new ones.
    names = [name for name in train_settings.SETTINGS if name in args.given or not args.resume]
    options: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.data:
        options["data"] = tuple(args.data)
    if args.recipe is not None:
        options = {**_checked(read_recipe(named_path(args.recipe)), args.recipe), **options}
    options = train_settings.without_rivals({**own, **options}, args.given)
    options = {name: _absolute(name, value) for name, value in options.items()}
    folder = rewind.output_folder(args.output) or _default_folder(verb, is_new=not args.resume)
    if args.resume:
        return resumed_recipe(folder, options), folder
    _check_free(folder)
    recipe = make_recipe(options)
    train_settings.check_needed(recipe, args.given)
    return recipe, folder


def _absolute(name: str, value: Any) -> Any:
    """A setting that names files with their whole paths, so that a run can be resumed from anywhere."""
    from llamita.checkpoint.load import EMBEDDED
    from llamita.train.setup import NEW

    if name == "data":
        return tuple(map(_absolute_data, value))
    if name not in ("model", "tokenizer") or value in (EMBEDDED, NEW):
        return value
    path = named_path(value)
    return str(path.absolute()) if path.exists() else value


def _absolute_data(name: str) -> str:
    from llamita.data.built_in import PREFIX
    from llamita.data.records import DATASET

    if name.startswith(PREFIX):
        return name
    if not name.startswith(DATASET):
        return str(named_path(name).absolute())
    folder = named_path(name.removeprefix(DATASET))
    return f"{DATASET}{folder.absolute()}" if folder.is_dir() else name


def _checked(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The values of a recipe file, once they make a recipe."""
    from llamita.train.recipe_file import make_recipe

    recipe = make_recipe(values, source=source)
    return {name: getattr(recipe, name) for name in values}


def _default_folder(verb: Verb, *, is_new: bool) -> Path:
    """The first of trained, trained-2, ... that is not there; to resume, the last that is."""

    def numbered(number: int) -> Path:
        return Path(verb.output if number == 1 else f"{verb.output}-{number}")

    number = 1
    while (path := numbered(number)).exists():
        number += 1
    return path if is_new else numbered(max(1, number - 1))


def _check_free(folder: Path) -> None:
    from llamita.checkpoint.target import checkpoint_files
    from llamita.train.session import INSIDE
    from llamita.train.state import has_checkpoint

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: give a folder with -o")
    if has_checkpoint(folder / INSIDE):
        raise UsageError(f"{folder} holds a run already: go on with it by --resume, or give another -o folder")
    if any(checkpoint_files(folder)):
        raise UsageError(f"{folder} holds a model already: give another -o folder")


def _session(args: argparse.Namespace, recipe: "Recipe", folder: Path, processes: "DeviceMesh | None") -> "Session":
    from llamita.train import setup

    make = setup.resume if args.resume else setup.begin
    return make(recipe, folder, device=args.device, offline=args.offline, processes=processes)


TRAIN = Verb(NAME, "trained", lambda args: {}, lambda session, *, is_quiet: None, train_report.finish)
