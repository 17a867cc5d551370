"""Code blocks of a Markdown page. Standard library only: `.ci/run` uses it before anything is installed.

An HTML comment on the line before a block says what the block is:
`<!-- command: NAME -->` one command line that `.ci/run` runs on a fresh clone; `<!-- not run: REASON -->` left out.
Every other `python` and `bash` block is run by the tests.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

MARK = re.compile(r"<!--\s*(command|not run)\b:?\s*(.*?)\s*-->")
FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*(\S*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line's number and the mark above it ("", "command" or "not run")."""

    language: str
    text: str
    line: int
    mark: str = ""
    remark: str = ""


def read_blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order; ValueError for a fence that is never closed."""
    blocks: list[Block] = []
    lines = iter(enumerate(page.splitlines(), start=1))
    mark = remark = ""
    for number, line in lines:
        if found := MARK.fullmatch(line.strip()):
            mark, remark = found.groups()
        elif opening := FENCE.match(line):
            fence, language = opening.groups()
            body = []
            for _, inner in lines:
                if inner.strip() == fence:
                    break
                body.append(inner)
            else:
                raise ValueError(f"the block that opens at line {number} is never closed")
            blocks.append(Block(language, "\n".join(body) + "\n", number + 1, mark, remark))
            mark = remark = ""
        elif line.strip():
            mark = remark = ""
    return blocks


def command(page: str, name: str) -> str:
    """The one command line of the block marked `<!-- command: NAME -->`; ValueError where it is not just that."""
    found = [block.text.strip() for block in read_blocks(page) if (block.mark, block.remark) == ("command", name)]
    if len(found) != 1 or len(found[0].splitlines()) != 1:
        raise ValueError(f"the page needs one block of one line marked <!-- command: {name} -->, found {found}")
    return found[0]


if __name__ == "__main__":
    print(command(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]))
