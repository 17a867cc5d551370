"""The language of a text, by its most frequent small words: rough, but without a model to download.

For more languages or short texts, give `llamita.data.cleaning.keeping` a function of a better one, such as fastText's.
"""

import re
from collections.abc import Mapping

WORD = re.compile(r"[^\W\d_]+")
FEWEST = 0.08  # share of a text's words that must be small words of its language
LANGUAGES: Mapping[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "en": "the of and to in is that it was for on with as his he be at by this had not are but from or have an",
        "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus",
        "fr": "de la le et les des en un du une que est pour qui dans par plus pas au sur ne se ce il sont avec elle",
        "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si",
        "it": "di e il la che in a per un è del non sono una con della si i le da al come anche lo alla più ha gli ma",
        "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu sua ou",
        "nl": "de van het een en in is dat op te zijn met voor niet die er aan om ook als bij door maar naar dan uit",
    }.items()
}


def language(text: str) -> str | None:
    """The code of the language most of whose small words a text has; None where it has too few of any."""
    words = WORD.findall(text.lower())
    counts = {name: sum(word in small for word in words) for name, small in LANGUAGES.items()}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] > FEWEST * len(words) else None
