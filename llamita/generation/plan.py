"""From a request to a run: its constraints are compiled, its prompts healed, and one of three loops writes.

The constraints are the settings `json_schema`, `regex`, `grammar`, `choice` and `token_healing`; every loop goes by the
same.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.generation.request import GenerationRequest, left_padded
from llamita.generation.run import Run
from llamita.generation.settings import GenerationSettings
from llamita.sampling.per_row import EachRow, check_rows
from llamita.structured import grammar, healing
from llamita.structured.forms import FORMS, check_forms, grammar_of
from llamita.structured.grammar import Constraint, Constraints
from llamita.structured.token_tables import TokenTables, checked


def plan(request: GenerationRequest) -> Run:
    """Make ready to write; nothing is read before the first of the run's steps.

    Raises UsageError and UnsupportedError for settings that are wrong, or exclude each other.
    """
    request = constrained(request)
    return _loop(request)(request)


def _loop(request: GenerationRequest) -> Callable[[GenerationRequest], Run]:
    """The loop that the settings ask for. Each is loaded only where it is taken."""
    settings = request.settings
    has_model = request.assistant is not None or bool(settings.assistant_early_exit)
    is_guessing = has_model or bool(settings.prompt_lookup_num_tokens)
    if settings.draft_tree is not None and not has_model:
        raise UsageError("a draft_tree is of a model's guesses: pass assistant_model or assistant_early_exit")
    if settings.num_beams > 1:
        if is_guessing:
            raise UsageError("beams and guessing ahead exclude each other: set num_beams=1, or leave the assistant out")
        from llamita.generation.beam import search_beams

        return search_beams
    if settings.num_return_sequences > 1 and not settings.do_sample:
        raise UsageError(
            f"num_return_sequences={settings.num_return_sequences} would repeat one greedy text: set do_sample=True, "
            "or num_beams"
        )
    if is_guessing:
        from llamita.generation.speculative.speculate import speculate

        return speculate
    from llamita.generation.decode import decode

    return decode


def constrained(request: GenerationRequest) -> GenerationRequest:
    """The same with the constraints that its settings ask for, and prompts cut back to be healed; itself without any.

    Raises UsageError for wrong forms, two of them, or no tokenizer to read them by.
    """
    forms = _forms(request.settings, len(request.input_ids))
    names = sorted({name for row in forms for name, value in row.items() if value is not None})
    if not names and not request.settings.token_healing:
        return request
    check_forms([*names], heals=request.settings.token_healing)
    tables = checked(request.tables, names[0] if names else "token_healing")
    if not names:
        return _healed(request, tables)
    vocabulary = tables.grammar(request.settings.eos_token_ids)
    return replace(request, constraints=_constraints(forms, vocabulary))


def _forms(settings: GenerationSettings, rows: int) -> list[dict[str, Any]]:
    """The forms of each row."""
    given = {name: getattr(settings, name) for name in FORMS}
    for name, value in given.items():
        if isinstance(value, EachRow):
            check_rows(name, value, rows)
    return [
        {name: value[row] if isinstance(value, EachRow) else value for name, value in given.items()}
        for row in range(rows)
    ]


def _constraints(forms: list[dict[str, Any]], vocabulary: grammar.Vocabulary) -> Constraints:
    """A constraint a row, each form compiled once."""
    made: list[tuple[dict[str, Any], Constraint | None]] = []
    rows: list[Constraint | None] = []
    for form in forms:
        known = next((pair for pair in made if pair[0] == form), None)
        if known is None:
            found = grammar_of(form)
            known = (form, None if found is None else Constraint(found, vocabulary))
            made.append(known)
        rows.append(None if known[1] is None else known[1].fork())
    return Constraints(rows)


def _healed(request: GenerationRequest, tables: TokenTables) -> GenerationRequest:
    """The prompts without their last tokens where these begin longer ones, to be written again."""
    prompts = request.prompts or _listed(request)
    healed = [healing.heal(prompt, tables.healing) for prompt in prompts]
    kept = [one.token_ids for one in healed]
    dropped = [prompt[len(rest) :] for prompt, rest in zip(prompts, kept, strict=True)]
    if not any(dropped):
        return request
    ids, mask = left_padded(kept, request.settings.padding or 0, request.input_ids.device)
    return replace(
        request,
        input_ids=ids,
        mask=mask,
        prompts=None if request.prompts is None else kept,
        constraints=Constraints([one.healing for one in healed]),
        dropped=dropped,
    )


def _listed(request: GenerationRequest) -> Sequence[list[int]]:
    """The prompts without padding. Raises UsageError where they are not all there."""
    ids = request.input_ids
    is_part = request.mask is not None and request.mask.shape != ids.shape
    if request.embeds is not None or request.positions is not None or is_part:
        raise UsageError(
            "token_healing takes tokens off the prompts: pass input_ids of the whole texts and their mask, no positions"
        )
    shown: Tensor = torch.ones_like(ids) if request.mask is None else request.mask
    return [row[mask != 0].tolist() for row, mask in zip(ids, shown, strict=True)]
