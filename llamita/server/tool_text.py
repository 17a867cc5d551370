"""Streams of answers that may be calls of tools: what could be a call waits until it is clear."""

from llamita.structured.tool_calls import PYTHON_TAG

TAG = "<function="
OPENINGS = ("{", "[", PYTHON_TAG)  # an answer that begins so is a call, or is shown when it is over


class ToolText:
    """The text of an answer, piece by piece, without what may be a call; `rest` has that."""

    def __init__(self) -> None:
        self._held, self._is_plain, self._is_call = "", False, False

    def push(self, text: str) -> str:
        """What can be shown now that this was written."""
        self._held += text
        if self._is_call:
            return ""
        begin = self._held.lstrip()
        if not self._is_plain:
            if begin.startswith(OPENINGS):
                self._is_call = True
                return ""
            if not begin or any(opening.startswith(begin) for opening in OPENINGS):
                return ""
            self._is_plain = True
        return self._take()

    def rest(self) -> str:
        """What was held back; of no use where it was a call."""
        held, self._held = self._held, ""
        return held

    def _take(self) -> str:
        """All that is before a tag, or before what may become one."""
        at = self._held.find(TAG)
        if at < 0:
            sizes = range(min(len(TAG) - 1, len(self._held)), 0, -1)
            at = len(self._held) - next((size for size in sizes if self._held.endswith(TAG[:size])), 0)
        else:
            self._is_call = True
        shown, self._held = self._held[:at], self._held[at:]
        return shown
