"""Counts of an engine, for those who watch over it."""

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, kw_only=True)
class EngineCounts:
    """What happened since an engine began."""

    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generation_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class EngineStats(EngineCounts):
    """The same, and what there is now: requests and blocks.

    step_age: seconds since the last step ended, 0 while there is nothing to do.
    """

    running: int = 0
    waiting: int = 0
    blocks: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0
    step_age: float = 0.0

    def after(self, earlier: EngineCounts) -> "EngineStats":
        """The stats of this engine as of one that had gone on where an earlier one ended."""
        names = [count.name for count in fields(EngineCounts)]
        return replace(self, **{name: getattr(self, name) + getattr(earlier, name) for name in names})
