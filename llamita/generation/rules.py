"""What the texts of a call of generate must be: of the form its flags ask for, and whole where a prompt breaks off.

The flags are `json_schema`, `regex`, `grammar`, `choice` and `token_healing`; every strategy goes by the same rules.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.generation import text_options
from llamita.generation.hf_flags import GenerationFlags
from llamita.generation.request import GenerationRequest
from llamita.sampling.per_row import EachRow, check_rows
from llamita.structured import grammar, healing
from llamita.structured.grammar import Constraint, Constraints
from llamita.tokenizer.pieces import token_bytes
from llamita.tokenizer.protocol import Tokenizer


def ruled(job: GenerationRequest) -> GenerationRequest:
    """The same with the rules that its options ask for, and prompts cut back to be healed; itself without any.

    Raises UsageError for wrong forms, two of them, or no tokenizer to read them by.
    """
    forms = _forms(job.options, len(job.input_ids))
    names = sorted({name for row in forms for name, value in row.items() if value is not None})
    if not names and not job.options.token_healing:
        return job
    text_options.check_forms([*names], heals=job.options.token_healing)
    tokenizer = _checked(job.tokenizer, names[0] if names else "token_healing")
    if not names:
        return _healed(job, tokenizer)
    return replace(job, rules=_constraints(forms, grammar.Vocabulary(tokenizer, job.options.eos_token_ids)))


def _forms(options: GenerationFlags, rows: int) -> list[dict[str, Any]]:
    """The flags of each row."""
    given = {name: getattr(options, name) for name in text_options.FORMS}
    for name, value in given.items():
        if isinstance(value, EachRow):
            check_rows(name, value, rows)
    return [
        {name: value[row] if isinstance(value, EachRow) else value for name, value in given.items()}
        for row in range(rows)
    ]


def _constraints(forms: list[dict[str, Any]], vocabulary: grammar.Vocabulary) -> Constraints:
    """A rule a row, each form compiled once."""
    made: list[tuple[dict[str, Any], Constraint | None]] = []
    rows: list[Constraint | None] = []
    for form in forms:
        known = next((pair for pair in made if pair[0] == form), None)
        if known is None:
            grammar = text_options.form(form)
            known = (form, None if grammar is None else Constraint(grammar, vocabulary))
            made.append(known)
        rows.append(None if known[1] is None else known[1].fork())
    return Constraints(rows)


def _checked(tokenizer: Tokenizer | None, flag: str) -> Tokenizer:
    """The tokenizer, one of ours: raises UsageError for none, and for one of another library."""
    if tokenizer is None:
        raise UsageError(f"{flag} is about text: pass tokenizer= as well")
    if not (hasattr(tokenizer, "to_json") and hasattr(tokenizer, "control_ids")):
        raise UsageError(
            f"{flag} cannot read a {type(tokenizer).__name__}: pass llamita.tokenizer.load.load_tokenizer(folder)"
        )
    return tokenizer


def _healed(job: GenerationRequest, tokenizer: Tokenizer) -> GenerationRequest:
    """The prompts without their last tokens where these begin longer ones, to be written again."""
    ids = job.input_ids
    if job.embeds is not None or job.positions is not None or (job.mask is not None and job.mask.shape != ids.shape):
        raise UsageError(
            "token_healing takes tokens off the prompts: pass input_ids of the whole texts and their mask, no positions"
        )
    vocabulary = healing.Vocabulary(token_bytes(tokenizer))
    shown = torch.ones_like(ids) if job.mask is None else job.mask
    prompts = [row[mask != 0].tolist() for row, mask in zip(ids, shown, strict=True)]
    healed = [healing.heal(prompt, vocabulary) for prompt in prompts]
    kept = [one.token_ids for one in healed]
    dropped = [prompt[len(rest) :] for prompt, rest in zip(prompts, kept, strict=True)]
    if not any(dropped):
        return job
    ids, mask = _left_padded(kept, job.options.padding or 0, ids.device)
    return replace(
        job,
        input_ids=ids,
        mask=mask,
        limit=job.options.limit(ids.shape[1], ids.shape[1], job.model.config),
        rules=Constraints([one.healing for one in healed]),
        dropped=dropped,
    )


def _left_padded(rows: list[list[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T)."""
    longest = max(map(len, rows))
    ids = [[fill] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
