"""From a request to a run: compile the constraints, heal the prompts, choose one of three loops.

Constraints come from the settings `json_schema`, `regex`, `grammar`, `choice` and `token_healing`; all loops use them.
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
    """Prepare a run; the model reads nothing before the first step.

    Raises UsageError and UnsupportedError for settings that are wrong, or exclude each other.
    """
    request = constrained(request)
    return _loop(request)(request)


def _loop(request: GenerationRequest) -> Callable[[GenerationRequest], Run]:
    """The loop that the settings ask for; a loop is imported only when it is used."""
    settings = request.settings
    has_model = request.assistant is not None or bool(settings.assistant_early_exit)
    is_drafting = has_model or bool(settings.prompt_lookup_num_tokens)
    if settings.draft_tree is not None and not has_model:
        raise UsageError("a draft_tree needs a model that drafts: pass assistant_model or assistant_early_exit")
    if is_drafting or settings.num_beams > 1:
        _check_needs_no_plain_loop(request)
    if settings.num_beams > 1:
        if is_drafting:
            raise UsageError(
                "beams and speculative decoding exclude each other: set num_beams=1, or leave the assistant out"
            )
        from llamita.generation.beam import search_beams

        return search_beams
    if settings.num_return_sequences > 1 and not settings.do_sample:
        raise UsageError(
            f"num_return_sequences={settings.num_return_sequences} would repeat one greedy text: set do_sample=True, "
            "or num_beams"
        )
    if is_drafting:
        from llamita.generation.speculative.speculate import speculate

        return speculate
    from llamita.generation.decode import decode

    return decode


def _check_needs_no_plain_loop(request: GenerationRequest) -> None:
    """Raise UsageError for what only the plain loop does, one token of one text after another."""
    asked = {"a prefix": request.prefix, "logprobs": request.settings.logprobs, "watch": request.observers or None}
    if name := next((name for name, value in asked.items() if value is not None), None):
        raise UsageError(f"{name} goes with texts that are written token by token: leave beams and drafts out")


def constrained(request: GenerationRequest) -> GenerationRequest:
    """The request with its constraints compiled and its prompts healed; itself without any.

    Raises UsageError for wrong or conflicting constraints, and without a tokenizer.
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
    """The constraint settings of each row."""
    given = {name: getattr(settings, name) for name in FORMS}
    for name, value in given.items():
        if isinstance(value, EachRow):
            check_rows(name, value, rows)
    return [
        {name: value[row] if isinstance(value, EachRow) else value for name, value in given.items()}
        for row in range(rows)
    ]


def _constraints(forms: list[dict[str, Any]], vocabulary: grammar.Vocabulary) -> Constraints:
    """One constraint a row; equal settings are compiled once."""
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
    """The request with prompts cut back where their last tokens begin a longer token."""
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
    """The prompts without padding. Raises UsageError if part of them is not given as ids."""
    ids = request.input_ids
    is_part = request.mask is not None and request.mask.shape != ids.shape
    if request.embeds is not None or request.positions is not None or is_part:
        raise UsageError(
            "token_healing takes tokens off the prompts: pass input_ids of the whole texts and their mask, no positions"
        )
    shown: Tensor = torch.ones_like(ids) if request.mask is None else request.mask
    return [row[mask != 0].tolist() for row, mask in zip(ids, shown, strict=True)]
