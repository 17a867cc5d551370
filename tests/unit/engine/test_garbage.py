"""What there is when an engine begins is left out of garbage collections, and still freed when a model is unloaded."""

import os

import pytest

from tests.architecture.source import ROOT
from tests.zygote import Zygote, result

# Run in a process of its own, where nothing is frozen and little to search.
BEGIN = """
import gc, weakref
from llamita.engine import garbage

class Circle:
    def __init__(self):
        self.own = self

circle = Circle()
held = weakref.ref(circle)
"""
SCRIPTS = {
    "what there is is left out meanwhile": """
with garbage.frozen():
    del circle
    gc.collect()
    assert held() is not None and gc.get_freeze_count() > 0
    garbage.collect()
    assert held() is None and gc.get_freeze_count() > 0
assert gc.get_freeze_count() == 0
""",
    "what a program has frozen itself stays frozen, and nothing else is": """
gc.freeze()
before = gc.get_freeze_count()
other = Circle()
later = weakref.ref(other)
with garbage.frozen():
    del circle, other
    gc.collect()
    assert held() is not None and later() is None
assert gc.get_freeze_count() == before
""",
    "nothing is left out where nothing was": """
del circle
garbage.collect()
assert held() is None and gc.get_freeze_count() == 0
""",
}


@pytest.mark.skipif(os.name != "posix", reason="forks processes")
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_what_is_frozen(script: str, zygote: Zygote) -> None:
    assert result(zygote.start(BEGIN + script, os.environ | {"PYTHONPATH": str(ROOT)})) == ""
