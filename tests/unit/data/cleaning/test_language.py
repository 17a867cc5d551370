"""The language of a text by its small words."""

import pytest

from llamita.data.cleaning.language import LANGUAGES, language

TEXTS = {
    "en": "The llama was in the garden and it had not seen that they were looking for it.",
    "de": "Das Lama war im Garten und es hatte nicht gesehen, dass die Kinder mit dem Ball auf es zu liefen.",
    "fr": "Le lama est dans le jardin et il ne se doute pas que les enfants sont avec la balle.",
    "es": "La llama está en el jardín y no sabe que los niños la buscan por todas las calles del pueblo.",
    "it": "Il lama è nel giardino e non sa che i bambini lo cercano per le strade della città con il pallone.",
    "pt": "A lhama está no jardim e não sabe que os meninos a procuram por todas as ruas da cidade com uma bola.",
    "nl": "De lama is in de tuin en het weet niet dat de kinderen met een bal op zoek zijn naar het dier.",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_sentence_is_recognized(name: str) -> None:
    assert language(TEXTS[name]) == name


def test_what_has_no_small_words_has_no_language() -> None:
    assert TEXTS.keys() == LANGUAGES.keys()
    assert language("") is None
    assert language("llama llama llama drama 12 34") is None
    assert language("これは日本語の文章です") is None
