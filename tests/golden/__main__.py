"""`python -m tests.golden`: write the records anew."""

from tests.golden.records import write

write()
