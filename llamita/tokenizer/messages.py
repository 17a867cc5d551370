"""Messages of a conversation: dictionaries of role and content, as every chat API has them."""

from collections.abc import Mapping, Sequence
from typing import Any

from llamita.checks import quoted
from llamita.errors import UsageError

Message = Mapping[str, Any]
# Parts of a content that no text model reads, as clients name them.
MEDIA = ("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file")


def checked(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages themselves; raises UsageError where they are no list of dictionaries that have a role."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise UsageError(f"a conversation is a list of messages, not {type(messages).__name__}: put it into a list")
    if not messages:
        raise UsageError("the conversation is empty: give at least one message")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise UsageError(f"a message is a dictionary with role and content, not {quoted(message)}")
    return messages


def without_media(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages themselves; raises UsageError for an image or the like, which templates of texts leave out."""
    for message in checked(messages):
        content = message.get("content")
        if isinstance(content, list | tuple) and any(
            isinstance(p, Mapping) and p.get("type") in MEDIA for p in content
        ):
            raise _no_text(message["role"])
    return messages


def _no_text(role: Any) -> UsageError:
    return UsageError(f"the content of a message of role {quoted(role)} is no text: this model reads nothing else")


def text_of(message: Message) -> str:
    """The content of a message as one text: it may be given as a list of text parts. Raises UsageError."""
    role, content = message.get("role"), message.get("content")
    if content is None:
        raise UsageError(f"a message of role {quoted(role)} has no content: give it a text")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(_is_text(part) for part in content):
        raise _no_text(role)
    return "".join(part["text"] for part in content)


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)
