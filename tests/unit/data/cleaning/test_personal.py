"""Personal data is masked, and what only looks like it stays."""

import pytest

from llamita.data.cleaning.personal import is_card, is_chinese_identity, is_iban, mask_personal


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ann.b+c@mail.example.org, please.", "Write to <EMAIL>, please."),
        ("Call +49 (30) 1234567 or (415) 555-0132 or 415-555-0132.", "Call <PHONE> or <PHONE> or <PHONE>."),
        ("paid with 4111 1111 1111 1111!", "paid with <CARD>!"),
        ("paid with 4111-1111-1111-1111", "paid with <CARD>"),
        ("IBAN DE89 3704 0044 0532 0130 00 today", "IBAN <IBAN> today"),
        ("his number 11010519491231002X is", "his number <ID> is"),
        ("SSN 078-05-1120.", "SSN <ID>."),
        ("from 192.168.0.1 to 2001:0db8:0000:0000:0000:ff00:0042:8329.", "from <IP> to <IP>."),
    ],
)
def test_personal_data_is_masked(text: str, masked: str) -> None:
    assert mask_personal(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 fails Luhn's checksum",
        "version 1.2.3.400 and 3.141592653589793 and 1.2.3.4.5",
        "in 2024-11-28, 10:15:30, he counted 1000000 llamas",
        "DE00 3704 0044 0532 0130 00 is no account",
        "110105194912310021 is no identity number",
        "the price is $1,234.56 and the index a[12345678]",
        "@decorator and user@host",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask_personal(text) == text


def test_checksums_find_every_single_wrong_digit() -> None:
    card, account, identity = "4111111111111111", "DE89370400440532013000", "11010519491231002X"
    assert is_card(card) and is_iban(account) and is_chinese_identity(identity)
    for place in range(16):
        wrong = card[:place] + str((int(card[place]) + 3) % 10) + card[place + 1 :]
        assert not is_card(wrong)
    for place in range(4, 22):
        assert not is_iban(account[:place] + str((int(account[place]) + 1) % 10) + account[place + 1 :])
    for place in range(17):
        assert not is_chinese_identity(identity[:place] + str((int(identity[place]) + 1) % 10) + identity[place + 1 :])
