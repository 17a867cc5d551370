"""What is written with other libraries is answered with what is written here."""

import pytest

import llamita
from llamita.errors import UsageError
from llamita.generation import text_options
from llamita.habits import LOADING, NAMES, WRITING


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max_new_tokens", "there is no option 'max_new_tokens': write max_tokens"),
        ("n", "there is no option 'n': give the prompt several times"),
        ("sampling_params", "its fields are options of their own"),
        ("no_repeat_ngram_size", "llm.model.generate(ids, no_repeat_ngram_size=...) takes it, as in transformers"),
        ("temperatur", "there is no option 'temperatur': did you mean 'temperature'?"),
        ("zebra", "there is no option 'zebra': leave it out, or take one of max_tokens, min_tokens, "),
    ],
)
def test_an_unknown_option_is_answered(name: str, says: str) -> None:
    with pytest.raises(UsageError) as told:
        text_options.check({name: 1})  # type: ignore[typeddict-unknown-key]  # pyright: ignore
    assert says in str(told.value)


def test_no_advice_hides_what_there_is() -> None:
    assert not {name for names in WRITING.values() for name in names} & text_options.TextOptions.__annotations__.keys()
    assert not {name for names in LOADING.values() for name in names} & llamita.load.__annotations__.keys()
    assert not NAMES.keys() & set(llamita.__all__)
