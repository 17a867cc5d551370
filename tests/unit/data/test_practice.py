"""The practice task."""

from llamita.data.practice import COUNT, completions, pairs


def test_ends_are_swapped_and_no_list_is_there_twice() -> None:
    records = completions()
    assert len({record.fields["prompt"] for record in records}) == len(records) == COUNT
    assert records == completions()
    for record in records[:50]:
        words = record.fields["prompt"].removesuffix(", ends swapped:").split(" ")
        answer = record.fields["completion"].removeprefix(" ").split(" ")
        assert (answer[0], answer[-1], answer[1:-1]) == (words[-1], words[0], words[1:-1])
        assert len(set(words)) == len(words)


def test_no_pair_is_the_same_twice() -> None:
    assert all(record.fields["chosen"] != record.fields["rejected"] for record in pairs())
    assert all(
        pair.fields["chosen"] == one.fields["completion"] for pair, one in zip(pairs(), completions(), strict=True)
    )
