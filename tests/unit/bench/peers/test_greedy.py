"""The greedy decoding that sessions of other libraries share."""

from llamita.bench.peers.greedy import GreedySession


class Counting(GreedySession):
    """Its next token is the number of those that it holds; notes each pass."""

    def __init__(self) -> None:
        self.held, self.passes = 0, list[list[int]]()

    def clear(self) -> None:
        self.held = 0

    def append(self, tokens: list[int]) -> None:
        self.held += len(tokens)
        self.passes.append(tokens)

    def greedy_token(self) -> int:
        return self.held


def test_a_prompt_is_read_at_once_and_every_token_is_the_most_probable_after_those_before() -> None:
    session = Counting()
    session.append([9])
    assert session.decode_seconds([7, 7, 7], 2) >= 0
    assert session.passes[1:] == [[7, 7, 7], [3], [4]]
    assert session.greedy_token() == 5
