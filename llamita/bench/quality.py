"""Quality: the perplexity of cria's held-out text in each format, compared with peers and with fp32 weights."""

from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

from llamita.bench.compare import Limit, Measurement, Results, Settings, compare
from llamita.bench.shapes import EMBEDDED, shape
from llamita.bench.systems import OURS, SYSTEMS, open_session
from llamita.bench.workers import Run
from llamita.checkpoint.load import find
from llamita.errors import UsageError
from llamita.model.likelihood import nats, perplexity
from llamita.quant.report import Documents, documents


def measure(settings: Settings, *, length: int) -> Results:
    """Measure perplexity in thousandths, on documents of `length` tokens; lower is better.

    The limit is ours in fp32: a share of 99.5 % means that the perplexity is 0.5 % higher. One turn is enough: all
    turns give the same value. Raises UsageError for a shape with random weights, and for OpenVINO, whose graph
    computes only the last token's logits.
    """
    if settings.shape != EMBEDDED:
        raise UsageError(
            f"the weights of {settings.shape} are random, so its perplexity means nothing: add --shape {EMBEDDED}"
        )
    if unable := [name for name in settings.systems if not SYSTEMS[name].has_all_logits]:
        raise UsageError(f"{unable[0]} computes only the last token's logits here: leave it out of --against")
    documents = held_out(min(length, shape(EMBEDDED).max_position_embeddings))
    exact = (OURS.name, EMBEDDED, "fp32", None, settings.threads, documents)
    test = Measurement(
        name="perplexity",
        unit="thousandths",
        prepare=prepare,
        arguments=(documents,),
        share=lambda _, value, limit: limit / value,
        limit=Limit(name="in fp32", unit="thousandths", scale=1.0, prepare=prepare, arguments=lambda _: exact),
    )
    return compare(test, replace(settings, repeats=1))


def held_out(length: int) -> Documents:
    """Encode the embedded model's held-out text, in documents of at most `length` tokens."""
    from llamita.tokenizer.load import load_tokenizer  # not at the top: workers get token ids

    text = (files("llamita") / EMBEDDED / "held_out.txt").read_text(encoding="utf-8")
    tokenizer = load_tokenizer(find(EMBEDDED))
    encode = partial(tokenizer.encode, add_special_tokens=False)
    return documents(text, encode=encode, first=tokenizer.bos_token_id, length=length)


def prepare(system: str, shape_name: str, format: str, path: Path | None, threads: int, documents: Documents) -> Run:
    """Prepare a run that returns 1000 times the perplexity of the documents. Runs in a worker process."""
    session = open_session(system, shape_name, format, path, threads)

    def run() -> float:
        loss = sum(nats(session.all_logits(list(document)), document) for document in documents)
        return 1000 * perplexity(loss, sum(len(document) - 1 for document in documents))

    return run
