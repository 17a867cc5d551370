"""Personal data in a text, replaced by the names of its kinds."""

import ipaddress
import re
from collections.abc import Callable, Mapping

DIGITS = re.compile(r"\d")


def mask_personal(text: str) -> str:
    """The text with e-mail addresses, card, bank, identity and phone numbers, and IP addresses replaced by their kind.

    What only looks like one stays where a checksum says so: card numbers (Luhn), IBANs (ISO 7064), Chinese identity
    numbers (GB 11643). A pattern can tell neither names nor street addresses.
    """
    for kind, (pattern, is_one) in KINDS.items():
        text = pattern.sub(lambda found, kind=kind, is_one=is_one: f"<{kind}>" if is_one(found[0]) else found[0], text)
    return text


def is_card(text: str) -> bool:
    """Whether digits are those of a payment card, by Luhn's checksum."""
    digits = [int(digit) for digit in DIGITS.findall(text)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits)


def is_iban(text: str) -> bool:
    """Whether this is an international bank account number, by its checksum (ISO 7064)."""
    plain = re.sub(r"\s", "", text)
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def is_chinese_identity(text: str) -> bool:
    """Whether this is an identity number of China, by its checksum (GB 11643)."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(text[:17]))
    return text[17].upper() == "10X98765432"[total % 11]


def is_address(text: str) -> bool:
    """Whether this is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _yes(text: str) -> bool:
    return True


# Kind -> what looks like one, and what says whether it is; those with checksums first, as others hold them.
KINDS: Mapping[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "EMAIL": (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), _yes),
    "IBAN": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), is_iban),
    "ID": (re.compile(r"(?<![\w-])(?:\d{17}[\dXx]|\d{3}-\d{2}-\d{4})(?![\w-])"),
           lambda text: "-" in text or is_chinese_identity(text)),
    "CARD": (re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])"), is_card),
    "IP": (re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]?\d)"
                      r"|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}"), is_address),
    "PHONE": (re.compile(r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){5,11}"
                         r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"), _yes),
}  # fmt: skip
