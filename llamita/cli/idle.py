"""Options that every verb takes and that do nothing in one: refused there, rather than taken in silence."""

import argparse
import os
from collections.abc import Mapping

from llamita.errors import UsageError

USUAL = {"device": "auto", "dtype": "auto", "kernels": "auto", "compile": "off"}  # what stands where nothing was given


def refuse(args: argparse.Namespace, verb: str, options: Mapping[str, str]) -> None:
    """Raise UsageError for the first of these options that was given; each comes with what to do instead.

    What the environment sets for all verbs is passed over.
    """
    for name, remedy in options.items():
        value, everywhere = getattr(args, name, None), os.environ.get(f"LLAMITA_{name.upper()}")
        if value not in (None, False, USUAL.get(name)) and everywhere is None:
            raise UsageError(f"--{name.replace('_', '-')} does nothing in {verb}: {remedy}")
