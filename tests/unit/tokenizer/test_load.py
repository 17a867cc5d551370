"""A tokenizer from a folder: transformers' ids and text, special tokens, damaged files."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llamita.errors import BrokenFileError, NotFoundError, UsageError
from llamita.tokenizer.huggingface import _encoded
from llamita.tokenizer.load import load_tokenizer
from tests.unit.tokenizer.tiny import TEXT, llama_2_library, write

SAMPLES = [
    *TEXT,
    "",
    " ",
    "  two  spaces ",
    "\n\n\t tab",
    "ünïcödé ∑ 🦙🦙",
    "don't I'LL 12345678",
    "a<b>c</s",
    "<|eot_id|> and <s> </s> in text",
    "\u00a0nbsp\u200b",
]


@pytest.fixture(params=["llama_2", "llama_3"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def reference(folder: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_ids_and_text_are_transformers(folder: Path):
    tokenizer, theirs = load_tokenizer(folder), reference(folder)
    for text in SAMPLES:
        for add in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=add, parse_special=True)
            assert ids == theirs.encode(text, add_special_tokens=add), text
            plain = tokenizer.encode(text, add_special_tokens=add)
            for skip in (True, False):
                assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
            assert tokenizer.decode(plain) == text or folder.name == "llama-2"
    theirs.split_special_tokens = True
    theirs._tokenizer.encode_special_tokens = True
    for text in SAMPLES:
        assert tokenizer.encode(text) == theirs.encode(text, split_special_tokens=True), text
    assert tokenizer.vocab_size == len(theirs)


def test_llama_3_special_tokens(llama_3: Path):
    tokenizer = load_tokenizer(llama_3)
    assert tokenizer.bos_token_id == tokenizer.token_to_id("<|begin_of_text|>")
    assert tokenizer.eos_token_id == tokenizer.token_to_id("<|eot_id|>")
    names = [tokenizer.id_to_token(i) for i in tokenizer.eos_token_ids]
    assert names == ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]
    assert tokenizer.pad_token_id == tokenizer.token_to_id("<|finetune_right_pad_id|>")
    assert len(tokenizer.special_ids) == 8
    assert tokenizer.id_to_token(10**6) is None
    assert tokenizer.id_to_token(-1) is None
    assert tokenizer.token_to_id("no such token") is None


def test_llama_2_has_no_pad_token_and_never_the_end_token(llama_2: Path):
    tokenizer = load_tokenizer(llama_2)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.pad_token_id) == (1, [2], None)
    write(llama_2, special_tokens_map={"pad_token": {"content": "<unk>"}})
    assert load_tokenizer(llama_2).pad_token_id == 0


def test_special_looking_text_stays_text_unless_asked(llama_3: Path):
    tokenizer = load_tokenizer(llama_3)
    eot = tokenizer.token_to_id("<|eot_id|>")
    text = "a<|eot_id|>b"
    assert eot not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert eot in tokenizer.encode(text, parse_special=True)
    parts = tokenizer.encode_parts(["a<|eot_id|>", eot, "b"])
    assert parts.count(eot) == 1
    assert tokenizer.decode(parts, skip_special_tokens=False) == "a<|eot_id|><|eot_id|>b"


def test_other_threads_run_while_a_long_text_is_read(llama_3: Path):
    tokenizer = load_tokenizer(llama_3)
    text = "the cat sat " * 20_000
    library = tokenizer._library
    ids = library.encode(text, add_special_tokens=False).ids
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    turns, is_over = 0, False

    def run() -> None:
        nonlocal turns
        while not is_over:
            turns += 1
            time.sleep(0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        found = []
        for read in (lambda: _encoded(library, text), lambda: tokenizer.decode(ids)):
            before = turns
            found.append((read(), turns - before))
    finally:
        is_over = True
        thread.join()
    assert [result for result, _ in found] == [ids, text]
    assert min(count for _, count in found) > 20  # 0 or 1 where the call held the interpreter


def test_a_text_with_its_own_bos_gets_no_second(folder: Path):
    tokenizer = load_tokenizer(folder)
    bos = tokenizer.bos_token_id
    assert bos is not None
    ids = tokenizer.encode(f"{tokenizer.id_to_token(bos)}hello", parse_special=True)
    assert ids.count(bos) == 1
    assert tokenizer.encode("hello").count(bos) == 1
    assert bos not in tokenizer.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("") == [bos]


def test_add_bos_token_of_older_checkpoints(llama_2: Path):
    library = llama_2_library()
    library.post_processor = None
    library.save(str(llama_2 / "tokenizer.json"))
    config = json.loads((llama_2 / "tokenizer_config.json").read_text())
    for change, expected in [
        ({}, []),
        ({"add_bos_token": True}, [1]),
        ({"tokenizer_class": "LlamaTokenizer"}, [1]),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, []),
        ({"add_bos_token": True, "add_eos_token": True}, [1, 2]),
    ]:
        write(llama_2, tokenizer_config={**config, **change})
        assert load_tokenizer(llama_2).encode("") == expected, change


def test_padding_and_truncation_left_in_the_file_are_ignored(llama_3: Path):
    content = json.loads((llama_3 / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    write(llama_3, tokenizer=content)
    assert len(load_tokenizer(llama_3).encode(TEXT[0])) > 4


def test_tokens_known_to_the_config_alone_are_added(llama_3: Path):
    config = json.loads((llama_3 / "tokenizer_config.json").read_text())
    size = load_tokenizer(llama_3).vocab_size
    decoder = {str(size): {"content": "<|new|>", "special": True, "normalized": False}}
    write(llama_3, tokenizer_config={**config, "added_tokens_decoder": decoder})
    tokenizer = load_tokenizer(llama_3)
    assert tokenizer.token_to_id("<|new|>") == size
    assert size in tokenizer.special_ids
    assert tokenizer.encode("<|new|>", parse_special=True, add_special_tokens=False) == [size]
    assert size not in tokenizer.encode("<|new|>")
    decoder = {str(size + 5): {"content": "<|new|>", "special": True}}
    write(llama_3, tokenizer_config={**config, "added_tokens_decoder": decoder})
    with pytest.raises(BrokenFileError, match="no place"):
        load_tokenizer(llama_3)


def test_tokens_named_in_a_role_are_special(llama_3: Path):
    config = json.loads((llama_3 / "tokenizer_config.json").read_text())
    write(llama_3, tokenizer_config={**config, "additional_special_tokens": ["Ġllama", {"content": "absent"}]})
    tokenizer = load_tokenizer(llama_3)
    number = tokenizer.token_to_id("Ġllama")
    assert number in tokenizer.special_ids
    ids = tokenizer.encode("a llama")
    assert number not in ids
    assert tokenizer.decode(ids) == "a llama"
    assert tokenizer.encode("a llama", parse_special=True)[-1] == number


@pytest.mark.parametrize("end", [7, [7, 3], [7, -1, 7, 3], None])
def test_end_tokens_in_every_form(llama_2: Path, end: object):
    write(llama_2, generation_config={"eos_token_id": end})
    expected = [2] + ([7, 3] if isinstance(end, list) else [7] if end else [])
    assert load_tokenizer(llama_2).eos_token_ids == expected


def test_chat_templates_from_each_place(llama_2: Path):
    config = json.loads((llama_2 / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    write(llama_2, tokenizer_config={**config, "chat_template": named})
    tokenizer = load_tokenizer(llama_2)
    assert (tokenizer.chat_template, dict(tokenizer.chat_templates)) == ("D", {"default": "D", "tool_use": "T"})
    (llama_2 / "additional_chat_templates").mkdir()
    (llama_2 / "additional_chat_templates" / "rag.jinja").write_text("R")
    (llama_2 / "chat_template.jinja").write_text("F")
    tokenizer = load_tokenizer(llama_2)
    assert tokenizer.chat_template == "F"
    assert tokenizer.chat_templates == {"default": "F", "tool_use": "T", "rag": "R"}
    (llama_2 / "chat_template.jinja").unlink()
    del config["chat_template"]
    write(llama_2, tokenizer_config=config)
    assert load_tokenizer(llama_2).chat_template == "R"


def test_missing_and_damaged_files_are_one_sentence(llama_3: Path, tmp_path: Path):
    def complaint(error: type[Exception], name: str, content: str) -> str:
        path = llama_3 / name
        before = path.read_bytes()
        path.write_text(content)
        with pytest.raises(error) as caught:
            load_tokenizer(llama_3)
        path.write_bytes(before)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(NotFoundError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")
    text = (llama_3 / "tokenizer.json").read_text()
    assert "tokenizer.json" in complaint(BrokenFileError, "tokenizer.json", text[: len(text) // 2])
    assert "git lfs pull" in complaint(
        BrokenFileError, "tokenizer.json", "version https://git-lfs.github.com/spec/v1\n"
    )
    for content in ("", "{}", "[]", text.replace('"BPE"', '"XYZ"', 1)):
        complaint(BrokenFileError, "tokenizer.json", content)
    template = json.loads(text)
    template["post_processor"]["processors"][1]["special_tokens"] = {}
    complaint(BrokenFileError, "tokenizer.json", json.dumps(template))
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        for content in ("", "{", "[1]"):
            assert name in complaint(BrokenFileError, name, content)
    for field in ('"added_tokens_decoder": {"x": 1}', '"added_tokens_decoder": 3', '"chat_template": [1]'):
        complaint(BrokenFileError, "tokenizer_config.json", f"{{{field}}}")


def test_two_tokens_of_one_id_are_found_when_they_matter(llama_2: Path):
    content = json.loads((llama_2 / "tokenizer.json").read_text())
    content["model"]["vocab"]["▁l"] = content["model"]["vocab"]["ll"]
    write(llama_2, tokenizer=content)
    tokenizer = load_tokenizer(llama_2)
    with pytest.raises(BrokenFileError, match="contradicts itself"):
        tokenizer.encode("</s>")


def test_wrong_text_and_ids_are_usage_errors(llama_3: Path):
    tokenizer = load_tokenizer(llama_3)
    with pytest.raises(UsageError, match="not valid Unicode"):
        tokenizer.encode("\ud800")
    with pytest.raises(UsageError, match="token ids are integers"):
        tokenizer.decode([-1])


def test_loading_a_tokenizer_loads_no_torch():
    code = "import sys, llamita.tokenizer.load, llamita.tokenizer.stream, llamita.tokenizer.chat;"
    code += "print([name for name in ('torch', 'transformers', 'jinja2', 'huggingface_hub') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
