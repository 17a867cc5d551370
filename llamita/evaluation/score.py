"""The score of a task: greedy answers that are equal to the right one, or choices ranked by their log-likelihood."""

from collections.abc import Callable, Mapping, Sequence

from llamita.errors import UsageError
from llamita.evaluation.perplexity import Progress, Window, logprobs, no_progress, start_token
from llamita.evaluation.tasks import CHOICE, EXACT, Case, Task, TaskScore
from llamita.llm import LLM
from llamita.tokenizer.chat import encode_chat
from llamita.tokenizer.protocol import Tokenizer

MOST_NEW = 128  # tokens of an answer
AT_ONCE = 32  # answers that are written together


def score_task(llm: LLM, task: Task, *, progress: Progress = no_progress) -> TaskScore:
    """Score a model on a task. Raises UsageError for a case that does not fit into the context."""
    return RULES[task.rule](llm, task, progress)


def _exact(llm: LLM, task: Task, progress: Progress) -> TaskScore:
    """Right is a greedy answer that equals the case's, without white space around it."""
    right = 0
    for start in range(0, len(task.cases), AT_ONCE):
        progress(start, len(task.cases))
        cases = task.cases[start : start + AT_ONCE]
        written = llm.generate([_prompt(llm, case) for case in cases], temperature=0.0, max_tokens=MOST_NEW)
        right += sum(one.text.strip() == str(case.answer).strip() for one, case in zip(written, cases, strict=True))
    return TaskScore(task.name, task.rule, right, len(task.cases))


def _choice(llm: LLM, task: Task, progress: Progress) -> TaskScore:
    """Right is a case whose right choice has the largest log-likelihood after its prompt."""
    right = right_per_byte = 0
    for number, case in enumerate(task.cases):
        progress(number, len(task.cases))
        found = [continuation_logprob(llm, *_parts(llm.tokenizer, case, choice))[0] for choice in case.choices]
        per_byte = [one / len(choice.encode()) for one, choice in zip(found, case.choices, strict=True)]
        right += found.index(max(found)) == case.answer
        right_per_byte += per_byte.index(max(per_byte)) == case.answer
    return TaskScore(task.name, task.rule, right, len(task.cases), right_per_byte)


# Which answers of a task are right.
RULES: Mapping[str, Callable[[LLM, Task, Progress], TaskScore]] = {EXACT: _exact, CHOICE: _choice}


def continuation_logprob(llm: LLM, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The log-likelihood of token ids after others, in nats, and whether greedy decoding writes them.

    Raises UsageError if they exceed the model's context.
    """
    count = len(context) + len(continuation) - 1  # the last token is predicted, not read
    if count > llm.context_length:
        raise UsageError(f"a case has {count} tokens, the model reads at most {llm.context_length}: leave the task out")
    found = logprobs(llm.model, Window([*context, *continuation], len(continuation)))
    return found.chosen.double().sum().item(), bool((found.ranks == 1).all())


def split_tokens(tokenizer: Tokenizer, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of its continuation, cut from those of both together, as lm-eval cuts them.

    White space at the end of the prompt belongs to the continuation, whose first token has it.
    """
    rest = prompt.rstrip()
    whole = tokenizer.encode(prompt + continuation, add_special_tokens=False)
    context = tokenizer.encode(rest, add_special_tokens=False)
    start = [] if context and tokenizer.bos_token_id is None else [start_token(tokenizer)]
    after = whole[len(context) :]
    if not after:  # the ends of both are one token together
        after = tokenizer.encode(prompt[len(rest) :] + continuation, add_special_tokens=False)
    return [*start, *context], after


def _parts(tokenizer: Tokenizer, case: Case, choice: str) -> tuple[list[int], list[int]]:
    if not case.messages:
        return split_tokens(tokenizer, case.prompt, choice)
    return _chat(tokenizer, case), tokenizer.encode(choice, add_special_tokens=False)


def _prompt(llm: LLM, case: Case) -> list[int] | str:
    return _chat(llm.tokenizer, case) if case.messages else case.prompt


def _chat(tokenizer: Tokenizer, case: Case) -> list[int]:
    return encode_chat(tokenizer, [dict(message) for message in case.messages], tools=case.tools or None)
