"""What `llamita train` says of a run before its first step and after its last, on the terminal and in report.html."""

from pathlib import Path
from typing import TYPE_CHECKING

from llamita.cli import terminal

if TYPE_CHECKING:
    from llamita.train.session import Session

SAMPLES, SAMPLE_TOKENS, PROMPT_TOKENS = 3, 48, 8


def first_line(session: "Session") -> str:
    """One line about what is going to be trained."""
    from llamita.parallel import mesh

    recipe, run, count = session.recipe, session.run, mesh.world_size()
    size = run.num_parameters / 1e6
    start = f"from step {run.step} " if run.step else ""
    processes = f"processes: {count}, " if count > 1 else ""
    return (
        f"{recipe.task} {size:.1f} M parameters {start}for {run.steps:,} steps of {recipe.rows} x {recipe.length} "
        f"tokens, {len(run.loader):,} rows of data, {recipe.optimizer}, {recipe.precision}, "
        f"{processes}threads: {recipe.threads}{_cleaned(session)}"
    )


def _cleaned(session: "Session") -> str:
    """How many records each step of cleaning has dropped or changed."""
    counts = ", ".join(f"{name} {count}" for name, count in session.cleaned.items())
    return f"; records dropped or changed: {counts}" if counts else ""


def finish(session: "Session", before: None, *, is_quiet: bool) -> None:
    """Write the report, and show what the model writes."""
    from llamita.train.metrics import read_log
    from llamita.train.report import facts

    samples, metrics = _samples(session), read_log(session.log_path)
    report = write_report(session, "train", samples)
    if is_quiet:
        print(session.folder)
        return
    for prompt, text in samples:
        terminal.show(f"{prompt}{text}\n\n")
    terminal.note("; ".join(f"{name}: {value}" for name, value in facts(metrics, session.recipe).items()))
    terminal.note(f"wrote {report} and {_how_to_use(session)}")


def write_report(session: "Session", verb: str, samples: list[tuple[str, str]]) -> Path:
    """Write report.html with the run's figures and sample texts; returns its path."""
    from llamita.files.disk import write_text
    from llamita.train.metrics import read_log
    from llamita.train.report import render

    report = session.folder / "report.html"
    title = f"llamita {verb}: {session.folder.name}"
    write_text(report, render(title, session.recipe, read_log(session.log_path), samples))
    return report


def _how_to_use(session: "Session") -> str:
    """The line that writes with what was trained."""
    model, adapter = session.written
    what, also = ("model", "") if adapter is None else ("adapter", f" --adapter {adapter}")
    return f"the {what}: llamita generate -m {model}{also}"


def _samples(session: "Session") -> list[tuple[str, str]]:
    """Beginnings of held-out documents (or of those trained on), and how the model goes on."""
    from llamita.data.documents import IGNORED
    from llamita.loader import load

    base, adapter = session.written
    llm = load(base, adapter=adapter, device="cpu", kernels="off")
    rows = session.held_out if len(session.held_out) else session.run.loader.next(SAMPLES)
    samples = []
    # Rows that begin with a document, rather than with a part of one, if there are such.
    begin = (rows.inputs[:, 0] == (session.tokenizer.bos_token_id or 0)).nonzero().flatten().tolist()
    for row in (begin or list(range(len(rows.inputs))))[:SAMPLES]:
        learned = (rows.targets[row] != IGNORED).nonzero()
        first = int(learned[0]) + 1 if len(learned) else PROMPT_TOKENS
        ids = rows.inputs[row, : first if first > 1 else PROMPT_TOKENS].tolist()
        if count := min(SAMPLE_TOKENS, llm.context_length - len(ids)):
            written = llm.generate([ids], max_tokens=count, temperature=0.7, seed=row)[0]
            samples.append((session.tokenizer.decode(ids), written.text))
    return samples
