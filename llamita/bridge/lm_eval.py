"""EleutherAI's lm-evaluation-harness on our models: its tasks, its prompts and its metrics, our numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from llamita.errors import UnsupportedError, UsageError
from llamita.evaluation.perplexity import Window, logprobs, start_token, windows
from llamita.evaluation.score import split_tokens
from llamita.generation.text_options import TextOptions
from llamita.llm import LLM

try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
except ImportError:
    raise UnsupportedError("lm-eval is not installed: pip install 'llamita[eval]'") from None

MOST_NEW = 256  # tokens of an answer, unless the task says another number, as in lm-eval


class HarnessModel(LM):
    """An `LLM` as the model of lm-eval: `lm_eval.simple_evaluate(model=HarnessModel(llamita.load()), tasks=[...])`.

    Log-likelihoods come from the plain model, as transformers computes them. Prompts that are too long lose their
    beginning, as in lm-eval's own models.
    """

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self._llm = llm
        self._length = llm.context_length

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation after its context, and whether greedy decoding writes it."""
        return [self._continuation(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """The log-likelihood of each text."""
        return [self._text(*request.args) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answer after each context, up to the first of the request's `until` strings."""
        return [self._answer(*request.args) for request in requests]

    def _continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        before, after = split_tokens(self._llm.tokenizer, context, continuation)
        ids = [*before, *after][-self._length - 1 :]  # the last token is predicted, not read
        found = logprobs(self._llm.model, Window(ids, min(len(after), len(ids) - 1)))
        return found.chosen.double().sum().item(), bool((found.ranks == 1).all())

    def _text(self, text: str) -> float:
        tokenizer = self._llm.tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        cut = windows(ids, first=start_token(tokenizer), length=self._length, stride=self._length)
        return sum(logprobs(self._llm.model, window).chosen.double().sum().item() for window in cut)

    def _answer(self, context: str, settings: Mapping[str, Any]) -> str:
        tokenizer, most = self._llm.tokenizer, int(settings.get("max_gen_toks", MOST_NEW))
        ids = split_tokens(tokenizer, context, "")[0]
        return self._llm.generate(ids[-max(1, self._length - most) :], **_options(settings, most)).text


def _options(settings: Mapping[str, Any], most: int) -> TextOptions:
    """lm-eval's settings of a generation as ours; greedy unless the task asks for draws."""
    until = settings.get("until") or []
    options: TextOptions = {"max_tokens": most, "stop": [until] if isinstance(until, str) else list(until)}
    options["temperature"] = float(settings.get("temperature", 1.0)) if settings.get("do_sample") else 0.0
    if settings.get("top_p") is not None:
        options["top_p"] = float(settings["top_p"])
    return options


def evaluate(llm: LLM, tasks: Sequence[str], *, limit: int | None = None, shots: int | None = None) -> dict[str, Any]:
    """lm-eval's results of a model by task: metric -> value. shots: examples in the prompt (default: the task's own).

    Raises UsageError for a task that lm-eval does not have.
    """
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager()
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        raise UsageError(f"lm-eval has no task {unknown[0]}: lm-eval ls tasks lists them")
    found = simple_evaluate(
        HarnessModel(llm), tasks=list(tasks), limit=limit, num_fewshot=shots, task_manager=manager, log_samples=False
    )
    return {} if found is None else dict(found["results"])
