"""Whether a text is prose worth learning, by counts alone: the rules of Gopher (arXiv:2112.11446, table A1)."""

FEWEST_WORDS = 5  # Gopher's 50 is for web pages
WORD_LENGTHS = (2.5, 10.0)  # of the mean; Gopher's lower bound is 3
MOST_SYMBOLS = 0.1  # of # and ... for each word
MOST_BULLETS, MOST_ELLIPSES = 0.9, 0.3  # shares of the lines
FEWEST_ALPHABETIC = 0.8  # share of the words with a letter
BULLETS = ("-", "*", "\u2022", "\u2023", "\u25e6")
ELLIPSES = ("...", "\u2026")


def is_prose(text: str) -> bool:
    """Whether a text has enough words, of usual lengths, most with letters, and few symbols, bullets and ellipses.

    The rules count words between spaces: leave them out for languages that write none.
    """
    words, lines = text.split(), [line.strip() for line in text.splitlines() if line.strip()]
    if len(words) < FEWEST_WORDS:
        return False
    symbols = text.count("#") + sum(text.count(one) for one in ELLIPSES)
    return (
        WORD_LENGTHS[0] <= sum(map(len, words)) / len(words) <= WORD_LENGTHS[1]
        and symbols <= MOST_SYMBOLS * len(words)
        and sum(line.startswith(BULLETS) for line in lines) <= MOST_BULLETS * len(lines)
        and sum(line.endswith(ELLIPSES) for line in lines) <= MOST_ELLIPSES * len(lines)
        and sum(any(map(str.isalpha, word)) for word in words) >= FEWEST_ALPHABETIC * len(words)
    )
