"""What the first process tells the others, and how it finds out which of them is gone."""

import socket
from collections.abc import Iterator

import pytest

from llamita.parallel.followers import Commands, Followers, LostProcess

pytestmark = pytest.mark.usefixtures("process_group")
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    found = [socket.socketpair() for _ in range(2)]
    yield found
    for pair in found:
        for end in pair:
            end.close()


def leading(pairs: list[Pair]) -> Followers:
    return Followers({rank: first for rank, (first, _) in enumerate(pairs, 1)}, wait=5.0)


def test_commands_come_in_order_until_the_end(pairs: list[Pair]) -> None:
    followers = leading(pairs)
    followers.tell("logits", [[[1, 2], 0, [5], 0]])
    followers.tell("copy", 1, 2, 3)
    followers.close()
    for _, second in pairs:
        assert list(Commands(second)) == [("logits", [[[[1, 2], 0, [5], 0]]]), ("copy", [1, 2, 3])]


def test_a_process_that_has_ended_is_named(pairs: list[Pair]) -> None:
    followers = leading(pairs)
    followers.tell("copy", 1, 2, 3)
    pairs[1][1].close()
    with pytest.raises(LostProcess, match="process 2 ended in the middle: see what it said"):
        for _ in range(3):  # the first may still go out
            followers.tell("copy", 1, 2, 3)


def test_the_end_of_a_process_is_seen_behind_what_it_took_up(pairs: list[Pair]) -> None:
    followers = leading(pairs)
    followers.tell("copy", 1, 2, 3)
    pairs[0][1].sendall(b".")
    with pairs[1][1] as second:
        second.sendall(b".")
    ended = "process 2 ended in the middle: see what it said, and start all again"
    assert str(followers.lost(RuntimeError("timed out"))) == ended


def test_a_process_that_takes_up_nothing_is_named(pairs: list[Pair]) -> None:
    followers = leading(pairs)
    followers.tell("copy", 1, 2, 3)
    commands = iter(Commands(pairs[0][1]))  # closes its end when it is dropped
    next(commands)
    assert str(followers.lost(TimeoutError("timed out"))) == "process 2 took up no step for 5 s: start all again"


def test_a_pass_that_failed_in_all_says_why(pairs: list[Pair]) -> None:
    followers = leading(pairs)
    followers.tell("copy", 1, 2, 3)
    for _, second in pairs:
        second.sendall(b".")
    assert str(followers.lost(RuntimeError("no memory"))) == "a pass of all processes failed: no memory"


def test_a_first_process_that_dies_is_no_end(pairs: list[Pair]) -> None:
    pairs[0][0].close()
    with pytest.raises(LostProcess, match="process 0 has ended without a word"):
        list(Commands(pairs[0][1]))
