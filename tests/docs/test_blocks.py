"""The reader of Markdown blocks, which decides what of the pages is run."""

import pytest

from tests.docs.blocks import Block, command, read_blocks

PAGE = """# Title

<!-- command: test -->
```bash
pip install . && pytest
```

<!-- not run: needs a network -->

```bash
llamita pull x
```
Text.
```python
print("a")
```
<!-- not run: forgotten -->
Text between a mark and a block ends the mark.
~~~text
```
~~~
"""


def test_blocks_are_read_with_their_marks() -> None:
    assert read_blocks(PAGE) == [
        Block("bash", "pip install . && pytest\n", 5, "command", "test"),
        Block("bash", "llamita pull x\n", 11, "not run", "needs a network"),
        Block("python", 'print("a")\n', 15),
        Block("text", "```\n", 20),
    ]


def test_command_is_found() -> None:
    assert command(PAGE, "test") == "pip install . && pytest"


@pytest.mark.parametrize("page", ["", PAGE + PAGE, PAGE.replace("pytest", "pytest\nls")])
def test_command_that_is_not_one_line_once_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match="one block of one line"):
        command(page, "test")


def test_open_fence_is_an_error() -> None:
    with pytest.raises(ValueError, match="opens at line 1"):
        read_blocks("```python\nx\n")
