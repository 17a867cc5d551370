"""Constrained text: every seed gives a valid one, rows fail alone, and hostile grammars fail fast."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llamita import DynamicCache, LlamaForCausalLM
from llamita.errors import UsageError
from llamita.structured import grammar
from llamita.structured.grammar import Constraint, Constraints, Grammar, Vocabulary
from llamita.tokenizer.huggingface import HuggingFaceTokenizer
from llamita.tokenizer.load import load_tokenizer
from tests.small import byte_tokenizer
from tests.unit.tokenizer.tiny import llama_2_library, llama_3_library

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["llama", "alpaca"]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,3}$"}, "maxItems": 2},
        "tall": {"type": ["boolean", "null"]},
        "home": {"$ref": "#/$defs/home"},
    },
    "required": ["name", "age", "kind", "tags", "tall", "home"],
    "additionalProperties": False,
    "$defs": {"home": {"type": "object", "properties": {"x": {"type": "number"}}, "additionalProperties": False}},
}
LIBRARIES = {
    "bytes": (byte_tokenizer, ["<|end_of_text|>", "<|eot_id|>"]),
    "byte-level": (llama_3_library, ["<|end_of_text|>", "<|eot_id|>"]),
    "byte-fallback": (llama_2_library, ["</s>"]),
}


def tokenizer_of(name: str, **changes: object) -> HuggingFaceTokenizer:
    make, ends = LIBRARIES[name]
    library = make()
    eos = [library.token_to_id(end) for end in ends]
    settings = {"bos_token_id": None, "eos_token_ids": eos, "pad_token_id": None} | changes
    return HuggingFaceTokenizer(library, prefix=[], suffix=[], templates={}, **settings)


@pytest.fixture(scope="module", params=LIBRARIES)
def tokenizer(request: pytest.FixtureRequest) -> HuggingFaceTokenizer:
    return tokenizer_of(request.param)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: HuggingFaceTokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


def written(constraints: list[Constraint | None], vocabulary: Vocabulary, seed: int, steps: int = 400) -> list[str]:
    """What chance writes in each row, from logits wider than the vocabulary; a row that does not end is not shown."""
    generator = torch.Generator().manual_seed(seed)
    rows, eos = Constraints(constraints), vocabulary.eos_token_ids
    ids: list[list[int]] = [[] for _ in constraints]
    while steps and not all(row and row[-1] in eos for row in ids):
        steps -= 1
        logits = torch.randn(len(ids), vocabulary.size + 7, generator=generator)
        logits[:, eos] += 2.0
        tokens = torch.multinomial(rows(logits).softmax(-1), 1, generator=generator)[:, 0]
        rows.append(tokens)
        for row, token in zip(ids, tokens.tolist(), strict=True):
            if not row or row[-1] not in eos:
                row.append(token)
    return [vocabulary.inner.decode_bytes(row[:-1]).decode() if row[-1] in eos else "" for row in ids]


def is_person(person: object) -> bool:
    return (
        isinstance(person, dict)
        and list(person) == ["name", "age", "kind", "tags", "tall", "home"]
        and isinstance(person["name"], str)
        and len(person["name"]) <= 6
        and type(person["age"]) is int
        and 0 <= person["age"] <= 130
        and person["kind"] in ("llama", "alpaca")
        and isinstance(person["tags"], list)
        and len(person["tags"]) <= 2
        and all(re.fullmatch("[a-z]{1,3}", tag) for tag in person["tags"])
        and person["tall"] in (True, False, None)
        and isinstance(person["home"], dict)
        and set(person["home"]) <= {"x"}
        and all(isinstance(x, int | float) for x in person["home"].values())
    )


def test_every_seed_writes_a_person(vocabulary: Vocabulary) -> None:
    first = Constraint(grammar.json_schema(PERSON), vocabulary)
    for seed in range(0, 200, 10):
        rows = [first.fork() for _ in range(10)]
        for text, row in zip(written(list(rows), vocabulary, seed), rows, strict=True):
            assert is_person(json.loads(text)), text
            assert row.is_finished
            assert row.is_complete
            assert row.error is None


FORMS: dict[str, tuple[Callable[[], Grammar], Callable[[str], object]]] = {
    "schema as text": (lambda: grammar.json_schema(json.dumps(PERSON)), lambda text: is_person(json.loads(text))),
    "regex": (lambda: grammar.regex(r"[ab]{3}é([0-9]+!)?"), re.compile(r"[ab]{3}é([0-9]+!)?").fullmatch),
    "lark": (lambda: grammar.lark('start: "(" start ")" | "x"'), re.compile(r"\(*x\)*").fullmatch),
    "choice": (
        lambda: grammar.choice(["yes", "no\n", 'ma"y\\be\x01é']),
        ["yes", "no\n", 'ma"y\\be\x01é'].__contains__,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_kept(form: str, vocabulary: Vocabulary) -> None:
    grammar, is_right = FORMS[form]
    first = Constraint(grammar(), vocabulary)
    for text in written([first.fork() for _ in range(12)], vocabulary, 1):
        assert is_right(text), text


def test_rows_differ_and_a_free_row_is_left_alone(vocabulary: Vocabulary) -> None:
    rows = Constraints([Constraint(grammar.choice(["a"]), vocabulary), None])
    logits = torch.randn(2, vocabulary.size + 3)
    masked = rows(logits)
    assert torch.equal(masked[1], logits[1])
    assert masked[0].isfinite().sum() >= 1
    assert (masked[0, vocabulary.size :] == -torch.inf).all()
    letter = int(masked[0].argmax())
    rows.append(torch.tensor([letter, 0]))
    # Whole: nothing but an end may follow.
    ended = rows(logits)[0].isfinite().nonzero()[:, 0].tolist()
    assert ended == sorted(vocabulary.eos_token_ids)
    assert rows.rows[0].is_finished
    rows.append(torch.tensor([vocabulary.eos_token_ids[-1], 0]))
    rows.append(torch.tensor([letter, 0]))  # padding
    assert rows.rows[0].is_complete
    assert rows.rows[0].error is None


def test_a_text_that_may_go_on_may_also_end(vocabulary: Vocabulary) -> None:
    constraint = Constraint(grammar.regex("a+"), vocabulary)
    assert not constraint.is_complete
    first = Constraints([constraint])(torch.zeros(1, vocabulary.size))[0]
    assert not first[vocabulary.eos_token_ids].isfinite().any()
    constraint.accept(int(first.argmax()))
    assert constraint.is_complete
    assert not constraint.is_finished
    after = Constraints([constraint])(torch.zeros(1, vocabulary.size))[0]
    assert after[vocabulary.eos_token_ids].isfinite().all()
    assert after[int(first.argmax())].isfinite()


def test_a_token_not_allowed_is_the_row_s_own_error(vocabulary: Vocabulary) -> None:
    good, bad = (Constraint(grammar.choice(["a"]), vocabulary) for _ in "ab")
    rows = Constraints([good, bad])
    letter = int(rows(torch.zeros(2, vocabulary.size))[0].argmax())
    wrong = next(i for i in range(vocabulary.size) if i != letter and i not in vocabulary.eos_token_ids)
    rows.append(torch.tensor([letter, wrong]))
    assert good.error is None
    assert "doesn't satisfy the grammar" in bad.error
    assert bad.is_finished
    assert not bad.is_complete
    ended = rows(torch.zeros(2, vocabulary.size))[1].isfinite().nonzero()[:, 0].tolist()
    assert ended == sorted(vocabulary.eos_token_ids)


def test_beams_and_drafts() -> None:
    tokenizer = tokenizer_of("bytes")
    vocabulary = Vocabulary(tokenizer)
    a, b, c, z = tokenizer.encode("abcz")
    rows = Constraints([Constraint(grammar.regex("abc|z"), vocabulary) for _ in range(2)])
    rows.append(torch.tensor([a, z]))
    assert [row.fits([b, c, z]) for row in rows.rows] == [2, 0]
    rows.select(torch.tensor([0, 0]))
    rows.append(torch.tensor([b, z]))
    assert [row.error is None for row in rows.rows] == [True, False]
    rows.append(torch.tensor([c, z]))
    assert rows.rows[0].is_complete


def test_without_an_end_token_nothing_is_constrained() -> None:
    for ends in ([], [99_999]):
        with pytest.raises(UsageError, match=r"^a constrained text needs a token to end with, and there is none"):
            Vocabulary(tokenizer_of("bytes", eos_token_ids=ends))


def test_other_end_tokens_may_be_named(small_path: Path) -> None:
    tokenizer = load_tokenizer(small_path)
    assert Vocabulary(tokenizer).eos_token_ids == tokenizer.eos_token_ids
    vocabulary = Vocabulary(tokenizer, eos_token_ids=[259])
    texts = written([Constraint(grammar.json_schema(PERSON), vocabulary)], vocabulary, 3)
    assert is_person(json.loads(texts[0]))


def test_a_model_samples_under_a_schema(small_path: Path) -> None:
    model, vocabulary = LlamaForCausalLM.from_pretrained(small_path), Vocabulary(load_tokenizer(small_path))
    schema = {
        **PERSON,
        "required": ["age", "kind"],
        "properties": {k: PERSON["properties"][k] for k in ("age", "kind")},
    }
    first = Constraint(grammar.json_schema(schema), vocabulary)
    rows = Constraints([first, first.fork()])
    cache, step = DynamicCache(), torch.randint(0, 256, (2, 6))
    written: list[list[int]] = []
    while not all(row.is_finished for row in rows.rows):
        with torch.no_grad():
            logits = model(step, past_key_values=cache).logits[:, -1]
        chosen = torch.multinomial(rows(logits).softmax(-1), 1)
        rows.append(chosen[:, 0])
        written.append(chosen[:, 0].tolist())
        step = chosen
    for ids in zip(*written, strict=True):
        person = json.loads(vocabulary.inner.decode_bytes([i for i in ids if i not in vocabulary.eos_token_ids]))
        assert 0 <= person["age"] <= 130
        assert person["kind"] in ("llama", "alpaca")


# What is refused


def nested(depth: int) -> str:
    return '{"properties":{"a":' * depth + "{}" + "}}" * depth


def doubling(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    return schema


def chained(links: int) -> dict:
    """A schema of objects in objects, each by a reference; some thousand overflow the stack of the library."""
    definitions: dict = {f"d{links}": {"type": "string"}}
    for i in range(links):
        inner = {"$ref": f"#/$defs/d{i + 1}"}
        definitions[f"d{i}"] = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


REFUSED: dict[str, Callable[[], Grammar]] = {
    "the JSON schema cannot be read: Expecting": lambda: grammar.json_schema("{"),
    "the JSON schema cannot be read: it is a list, not an object": lambda: grammar.json_schema("[]"),
    "the JSON schema cannot be read: Object of type": lambda: grammar.json_schema({"a": object()}),
    "the grammar is refused: Invalid type: strin": lambda: grammar.json_schema({"type": "strin"}),
    r"the grammar is refused: Unimplemented keys: \[\"not\"\]": lambda: grammar.json_schema({"not": {}}),
    "the JSON schema cannot be read: it is a bool": lambda: grammar.json_schema("false"),
    "the grammar is refused: Unsatisfiable schema": lambda: grammar.json_schema(
        {"type": "integer", "minimum": 5, "maximum": 3}
    ),
    "the grammar is refused: Resource 'http://a.b/' is not": lambda: grammar.json_schema({"$ref": "http://a.b/"}),
    "the grammar is refused: no text can have this form": lambda: grammar.json_schema({"$ref": "#"}),
    "the JSON schema cannot be read: recursion limit": lambda: grammar.json_schema(nested(100)),
    "the JSON schema cannot be read: maximum recursion": lambda: grammar.json_schema(nested(4000)),
    "the JSON schema has 2000004 characters, at most 100000": lambda: grammar.json_schema(nested(95_238) + "    "),
    "the JSON schema has .* characters": lambda: grammar.json_schema(doubling(13)),
    "the grammar is nested too deeply to compile: make it simpler": lambda: grammar.json_schema(chained(800)),
    "the grammar takes more than 2 s to compile: make it simpler": lambda: grammar.json_schema(
        {"allOf": [{"type": "string", "pattern": f"^.*a.{{{i}}}b.*$"} for i in range(80)]}
    ),
    "the grammar is nested too deeply to compile": lambda: grammar.lark(
        "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(4000)) + '\nr4000: "b"'
    ),
    "the regex has 999999 characters": lambda: grammar.regex("a" * 999_999),
    "the grammar is refused: unclosed group": lambda: grammar.regex("(a"),
    "the grammar is refused: look-around": lambda: grammar.regex("(?=a)b"),
    "the grammar is refused: .*unknown name": lambda: grammar.lark("start: foo"),
    "the grammar is refused: .*too deeply nested": lambda: grammar.lark("start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "a choice is a list of texts": lambda: grammar.choice("yes"),
    "a choice is a list of texts: give": lambda: grammar.choice([]),
    "a choice is a list of texts: give at least one, and none": lambda: grammar.choice(["a", ""]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_ts7_refused_in_one_sentence(message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}") as caught:
        Constraint(REFUSED[message](), Vocabulary(tokenizer_of("byte-level")))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_r11_ts7_a_row_that_meets_a_limit_on_its_way_ends_alone() -> None:
    tokenizer = tokenizer_of("byte-level")
    vocabulary = Vocabulary(tokenizer)
    doubled = 'start: a{1000}\na: b{1000}\nb: c{1000}\nc: "x"'
    hostile = Constraint(grammar.lark(doubled), vocabulary)
    rows: list[Constraint | None] = [hostile, Constraint(grammar.json_schema(PERSON), vocabulary)]
    texts = written(rows, vocabulary, 0)
    assert hostile.error is not None
    assert hostile.is_finished
    assert is_person(json.loads(texts[1]))


EXACT = 2**53


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 10**300},
        {"type": "integer", "minimum": 10**300, "maximum": 10**300},  # was answered with 2**63 - 1
        {"type": "integer", "minimum": EXACT + 1},  # was answered with 2**53
        {"type": "integer", "maximum": -EXACT - 1},
        {"type": "integer", "exclusiveMinimum": EXACT},
        {"type": "number", "minimum": 1e300},
        {"type": "number", "maximum": -1e19},
        {"type": "integer", "multipleOf": EXACT + 1},
        {"const": EXACT + 1},
        {"enum": ["a", {"b": [10**22 + 1]}]},
        {"type": "object", "properties": {"minimum": {"anyOf": [{"type": "string"}, {"minimum": 10**300}]}}},
        {"$defs": {"a": {"items": {"maximum": 10**300}}}, "type": "string"},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_held_exactly_are_refused(schema: dict[str, object]) -> None:
    for given in (schema, json.dumps(schema)):
        with pytest.raises(
            UsageError, match=r"which cannot be kept to exactly: take numbers up to 9007199254740992"
        ) as told:
            grammar.json_schema(given)
        assert len(str(told.value)) < 200


def test_large_numbers_that_can_be_held_are_kept_to() -> None:
    tokenizer = tokenizer_of("bytes")
    vocabulary = Vocabulary(tokenizer)
    bounds = {"minimum": EXACT - 1, "maximum": EXACT}
    for schema in ({"type": "integer", **bounds}, {"type": "integer", "exclusiveMinimum": EXACT - 2, "maximum": EXACT}):
        for number in (EXACT - 2, EXACT - 1, EXACT, EXACT + 1):
            constraint = Constraint(grammar.json_schema({**schema, "default": 10**300, "description": "x"}), vocabulary)
            for token_id in tokenizer.encode(str(number), add_special_tokens=False):
                constraint.accept(token_id)
            assert constraint.is_complete == (EXACT - 1 <= number <= EXACT)
    assert grammar.json_schema({"type": "integer", "minimum": 0, "maximum": 10**18})


@pytest.mark.parametrize("form", ["choice", "schema", "regex"])
def test_a_text_may_spell_a_control_token(tokenizer: HuggingFaceTokenizer, vocabulary: Vocabulary, form: str) -> None:
    """Where nothing else may be written, and the tokenizer would read the control token."""
    name = tokenizer.id_to_token(tokenizer.eos_token_ids[0])
    made = {
        "choice": lambda: grammar.choice([f"{name} it is"]),
        "schema": lambda: grammar.json_schema({"const": f"{name} it is"}),
        "regex": lambda: grammar.regex(re.escape(name).replace("\\ ", " ") + " it is"),
    }
    (text,) = written([Constraint(made[form](), vocabulary)], vocabulary, seed=1)
    assert text.strip('"') == f"{name} it is"


def test_a_grammar_may_name_a_control_token() -> None:
    vocabulary = Vocabulary(tokenizer_of("byte-level"))
    constraint = Constraint(grammar.lark('start: <|start_header_id|> "a"'), vocabulary)
    assert vocabulary.size > int(constraint.mask(vocabulary.size).sum()) >= 1


def test_a_vocabulary_is_read_once_for_all_grammars_that_name_a_control_token() -> None:
    vocabulary = Vocabulary(tokenizer_of("byte-level"))
    first, second = (vocabulary.of(grammar.lark(f'start: <|start_header_id|> "{text}"')) for text in "ab")
    assert first is second is not vocabulary.inner
    assert vocabulary.of(grammar.lark('start: "<|start_header_id|>"')) is vocabulary.inner
