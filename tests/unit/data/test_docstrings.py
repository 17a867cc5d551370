"""The text that every machine has."""

from llamita.data.docstrings import LENGTHS, read_docstrings


def test_docstrings_are_texts_in_a_fixed_order_up_to_a_size() -> None:
    records = read_docstrings(20_000)
    texts = [record.fields["text"] for record in records]
    assert 20_000 <= sum(map(len, texts)) < 200_000
    assert all(len(text) in LENGTHS and text.isascii() for text in texts)
    assert len(set(texts)) == len(texts)
    assert [record.fields for record in read_docstrings(20_000)] == [record.fields for record in records]
    assert records[0].where.endswith(".py")
