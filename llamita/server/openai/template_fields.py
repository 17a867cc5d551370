"""How a conversation is to be written by its template: the fields of vLLM and llama.cpp for it."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from llamita.server.body import at_most
from llamita.server.conversation_tokens import Rendering
from llamita.server.sampling_request import RequestModel

# What templates get from elsewhere, and names of options of those who render them.
TAKEN = (
    "messages", "tools", "documents", "bos_token", "eos_token", "pad_token", "unk_token", "add_generation_prompt",
    "continue_final_message", "tokenizer", "tokenize", "template", "chat_template", "variables",
)  # fmt: skip


def free_names(variables: dict[str, Any]) -> dict[str, Any]:
    """The variables, whose names a template can read and nothing else has. Raises ValueError."""
    for name in variables:
        if not name.isidentifier() or name.startswith("_") or name in TAKEN:
            why = "the template is the checkpoint's, and what it reads otherwise comes from elsewhere"
            raise ValueError(f"{name[:60]!r} is no name of a variable of one's own: {why}")
    return variables


class TemplateFields(RequestModel):
    """How a conversation is to be written: whether its last message goes on, what comes after, what templates read."""

    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(at_most(32)), AfterValidator(free_names)] | None = (
        None
    )

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message goes on with a message, add_generation_prompt begins another")
        return self

    @property
    def rendering(self) -> Rendering:
        """The same for who renders it."""
        return Rendering(
            continues=bool(self.continue_final_message),
            asks=self.add_generation_prompt is not False,
            variables=self.chat_template_kwargs or {},
        )
