"""How prompts that begin alike are sent to the same replica, which has their beginning in its prefix cache."""

import hashlib
import json
from collections.abc import Mapping, Sequence

CHARACTERS = 256  # of a request that choose its replica: a long system prompt, not the whole of a conversation
# The fields that a prompt is made of, in the order in which a model reads them.
FIELDS = ("model", "system", "instructions", "tools", "messages", "prompt", "input")


def prefix_of(body: bytes) -> str:
    """The beginning of what a request asks, in a form that is the same for all dialects; empty where there is none."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return ""
    return json.dumps([fields[name] for name in FIELDS if name in fields])[:CHARACTERS]


def ranked(prefix: str, replicas: Sequence[str], in_flight: Mapping[str, int], slack: int) -> list[str]:
    """The names of replicas, the one to ask first: by rendezvous hashing of a prefix, so that few prefixes move when
    a replica comes or goes.

    in_flight: requests of each replica. slack: by how many more than the least busy one a replica may have; beyond, or
    without a prefix, the least busy ones come first.
    """
    by_prefix = sorted(replicas, key=lambda name: hashlib.blake2b(f"{name}\0{prefix}".encode()).digest())
    if not replicas:
        return []
    least = min(in_flight.get(name, 0) for name in replicas)
    if prefix and in_flight.get(by_prefix[0], 0) - least <= slack:
        return by_prefix
    return sorted(by_prefix, key=lambda name: in_flight.get(name, 0))
