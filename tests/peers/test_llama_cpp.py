"""llama.cpp reads the GGUF files that we write, and we those that it writes; only where llama-cpp-python is there."""

import ctypes
import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is no test dependency: it compiles for long")

from llamita.checkpoint.gguf import load_gguf  # noqa: E402
from llamita.checkpoint.gguf_save import save_gguf  # noqa: E402
from llamita.checkpoint.load import Loaded, load_pretrained  # noqa: E402
from llamita.config import LlamaConfig  # noqa: E402
from llamita.files.gguf_split import open_gguf  # noqa: E402
from llamita.files.gguf_types import Field  # noqa: E402
from llamita.files.gguf_write import write_gguf  # noqa: E402
from llamita.model.llama import LlamaForCausalLM  # noqa: E402
from llamita.tokenizer.chat import encode_chat  # noqa: E402
from llamita.tokenizer.gguf import tokenizer_from_gguf  # noqa: E402
from llamita.tokenizer.gguf_pre import CUTS, pre_tokenizer  # noqa: E402
from llamita.tokenizer.gguf_write import tokenizer_to_gguf  # noqa: E402
from llamita.tokenizer.protocol import Tokenizer  # noqa: E402
from tests.parity.test_gguf import ROPES, SHAPES, random_model  # noqa: E402
from tests.unit.tokenizer.test_gguf import LEGACY, TEXTS, assembled_from, sentence_piece  # noqa: E402
from tests.unit.tokenizer.tiny import llama_3_library  # noqa: E402

TOKENS = 64
PROMPTS = ["Once upon a time", "def add(a, b):", "The little llama", "In the morning", "12 + 34 = "]
QUESTIONS = ["What is 17 + 25?", "Sort these numbers: 9 4 7 1", "Who are you?", "Repeat: apple river stone"]
# What they call the formats that llama_model_quantize makes.
THEIRS = {"q8_0": 7, "q4_0": 2, "q4_1": 3, "q6_k": 18, "q4_k_m": 15, "q4_k_s": 14, "q5_k_m": 17, "q5_k_s": 16}
# Logits within which two tokens count as equally likely: activations are rounded differently, and cria has ties.
TIE = {"f32": 1e-4, "bf16": 0.1, "f16": 0.05}
TIE_OF_BLOCKS = 0.7  # rounding activations to 8 bits, ours or theirs, moves a logit of cria by 0.3 to 0.45
# Written by hand, to be cut in every way: scripts, runs, marks, and what mixes them.
LONG_TEXT = "\n".join(
    [
        *TEXTS,
        "The quick brown fox, 1234567890 times; it's (really) \"quick\" — isn't it? Yes… 50% off, €20.00!",
        "Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë au delà des îles.",
        "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. STRASSE straße ẞ",
        "Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак ґанок",
        "いろはにほへと ちりぬるを。カタカナ１２３ｱｲｳ 漢字仮名交じり文、「引用」！",
        "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。三〇年",
        "다람쥐 헌 쳇바퀴에 타고파. ㄱㄴㄷ",
        "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ٠١٢٣٤٥٦٧٨٩",
        "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
        "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा १२३ क्षेत्र",
        "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ๑๒๓",
        "a\tb\t\tc\n\n\nd\r\n\r\ne \n f\u00a0g\u2003h\u3000i \t \n",
        "for (int i = 0; i < 10; ++i) { x[i] += 0x1F & ~mask; } // TODO: don't\n\tif x == 'y':\n        pass",
        "👍🏽👨‍👩‍👧‍👦🏳️‍🌈 ☃️ ∑∫√≠≈ ½ ² ³ Ⅷ ① a\u0301\u0302 ﬁ ǅ ʼn",
        "I'LL we'Ve YOU'D 'S 's''s ' ' 'll' x'y can't've",
        "word" * 30 + "1" * 31 + " " * 33 + "!" * 29 + "\n" * 9 + "ä" * 17,
    ]
)


@pytest.fixture(scope="module")
def cria() -> Loaded:
    return load_pretrained(dtype="float32", device="cpu")


@contextmanager
def theirs(path: Path, **options: Any) -> Iterator[Any]:
    """Their model of a file, and its memory given back."""
    quiet = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # their cache is fp16 by default
    model = llama_cpp.Llama(str(path), n_ctx=512, **quiet, **exact, **options)
    try:
        yield model
    finally:
        model.close()


def greedy(model: Any, ids: list[int], ends: list[int]) -> list[int]:
    """What llama.cpp writes behind the ids."""
    model.reset()
    written: list[int] = []
    for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        written.append(token)
        if len(written) == TOKENS or token in ends:
            break
    return written


def ours(model: LlamaForCausalLM, ids: list[int], ends: list[int]) -> list[int]:
    """What we write behind the ids."""
    out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=ends)
    return out[0].tolist()[len(ids) :]


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    asked = [encode_chat(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    return [*asked, *map(tokenizer.encode, PROMPTS)]


@torch.no_grad()
def gaps(model: LlamaForCausalLM, ids: list[int], written: list[int]) -> torch.Tensor:
    """How much likelier, in logits, another token was than each that was written behind the ids."""
    logits = model(torch.tensor([ids + written])).logits[0, len(ids) - 1 : -1].float()
    return logits.amax(-1) - logits.gather(-1, torch.tensor(written)[:, None])[:, 0]


@pytest.mark.parametrize("form", ["f32", "bf16", "f16", *THEIRS])
def test_they_write_the_same_text(form: str, cria: Loaded, tmp_path: Path) -> None:
    """Token for token; from blocks, where activations are rounded in other groups, up to tokens that are as likely."""
    path = save_gguf(cria.model, cria.tokenizer, tmp_path / "cria.gguf", form)
    model, tokenizer = load_gguf(path, dtype="float32" if form in TIE else "auto", device="cpu")
    assert tokenizer is not None
    ends, same = tokenizer.eos_token_ids, list[bool]()
    with theirs(path) as peer:
        for ids in prompts(tokenizer):
            written = greedy(peer, ids, ends)
            worst = float(gaps(model, ids, written).max())
            assert worst <= TIE.get(form, TIE_OF_BLOCKS), (tokenizer.decode(ids), tokenizer.decode(written))
            same.append(ours(model, ids, ends) == written)
    assert all(same if form == "f32" else same[: len(QUESTIONS)]), same  # of the answers to questions cria is sure


@pytest.mark.parametrize("form", THEIRS)
def test_we_read_what_they_quantized(form: str, cria: Loaded, tmp_path: Path) -> None:
    source = save_gguf(cria.model, cria.tokenizer, tmp_path / "f32.gguf")
    made = quantized_by_them(source, tmp_path / "theirs.gguf", THEIRS[form])
    model, tokenizer = load_gguf(made, device="cpu")
    assert tokenizer is not None
    with theirs(made) as peer:
        for ids in prompts(tokenizer)[:6]:
            written = greedy(peer, ids, tokenizer.eos_token_ids)
            assert gaps(model, ids, written).max() <= TIE_OF_BLOCKS
    # And the very same blocks are what we make of the same weights.
    file, same = open_gguf(made), open_gguf(save_gguf(cria.model, cria.tokenizer, tmp_path / "ours.gguf", form))
    assert {name: file.entry(name).storage for name in file.names} == {n: same.entry(n).storage for n in same.names}
    assert file.value("general.file_type") == same.value("general.file_type")
    differing = {name: (file.load(name) != same.load(name)).float().mean().item() for name in file.names}
    assert max(differing.values()) < 1e-3, differing


def quantized_by_them(source: Path, target: Path, file_type: int) -> Path:
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = file_type, 1
    done = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    assert done == 0
    return target


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_random_models(rope: str, shape: str, cria: Loaded, tmp_path: Path) -> None:
    """Every rotary type and grouping of heads, beyond the length at which types differ."""
    model = random_model(rope_parameters=ROPES[rope], **{**SHAPES[shape], "head_dim": 16})
    for parameter in model.parameters():
        parameter.data *= 0.5 if parameter.ndim == 2 else 1  # logits of a model's size
    path = save_gguf(model, cria.tokenizer, tmp_path / "m.gguf")
    ids = [i * 37 % 2000 for i in range(48)]
    with theirs(path, logits_all=True) as peer, torch.no_grad():
        peer.eval(ids)
        found = torch.tensor(peer.scores[: len(ids)])
        expected = model(torch.tensor([ids])).logits[0]
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max())), float(
        (found - expected).abs().max()
    )


def by_them(path: Path, texts: list[str]) -> list[list[list[int]]]:
    with theirs(path, vocab_only=True) as peer:
        return [[peer.tokenize(text.encode(), add_bos=True, special=has) for has in (False, True)] for text in texts]


def by_us(tokenizer: Tokenizer, texts: list[str]) -> list[list[list[int]]]:
    """A second BOS, which llama.cpp puts before a text that begins with one, is put here too."""
    bos = tokenizer.encode("")
    return [
        [bos + tokenizer.encode(text, add_special_tokens=False, parse_special=has) for has in (False, True)]
        for text in texts
    ]


def vocabulary_file(tokenizer: Tokenizer, path: Path) -> Path:
    fields = {"general.architecture": Field("string", "llama"), **needed(tokenizer)}
    write_gguf(path, fields | tokenizer_to_gguf(tokenizer, tokenizer.vocab_size), {})
    return path


def needed(tokenizer: Tokenizer) -> dict[str, Field]:
    from llamita.checkpoint.gguf_config import config_to_gguf

    return config_to_gguf(LlamaConfig(vocab_size=tokenizer.vocab_size, num_hidden_layers=1))[0]


def test_cria_is_tokenized_alike(cria: Loaded, tmp_path: Path) -> None:
    path = vocabulary_file(cria.tokenizer, tmp_path / "v.gguf")
    texts = [*TEXTS, *LONG_TEXT.splitlines(keepends=True), LONG_TEXT]
    for text, found, expected in zip(texts, by_them(path, texts), by_us(cria.tokenizer, texts), strict=True):
        assert found == expected, text


def cut_in(name: str) -> Tokenizer:
    """A byte-level tokenizer that cuts in one of the ways GGUF knows, with merges that cross no wrong cut."""
    content = json.loads(llama_3_library().to_str())
    cut = CUTS[name]
    content["pre_tokenizer"] = pre_tokenizer(cut)
    content["normalizer"] = {"type": cut.normalizer} if cut.normalizer else None
    content["model"]["ignore_merges"] = cut.ignores_merges
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    from tokenizers import trainers

    added = library.get_added_tokens_decoder().values()
    fresh = tokenizers.Tokenizer.from_str(json.dumps({**content, "added_tokens": [], "post_processor": None}))
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    fresh.train_from_iterator(
        LONG_TEXT.splitlines(), trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    )
    fresh.add_special_tokens(list(added))
    return assembled_from(fresh, "<|begin_of_text|>", "<|eot_id|>")


def is_cut_alike(name: str, text: str) -> bool:
    """Whether llama.cpp cuts a text as the tokenizers that it names do: it leaves out NFC, and simplifies two cuts."""
    if CUTS[name].normalizer == "NFC":
        return unicodedata.is_normalized("NFC", text)
    return name not in ("tekken", "gpt-4o") or text.isascii()


@pytest.mark.parametrize("name", CUTS)
def test_every_cut_is_theirs(name: str, tmp_path: Path) -> None:
    tokenizer = cut_in(name)
    path = vocabulary_file(tokenizer, tmp_path / "v.gguf")
    assert open_gguf(path).value("tokenizer.ggml.pre") == name
    texts = [text for text in LONG_TEXT.splitlines() if is_cut_alike(name, text)]
    assert len(texts) > 12
    for text, found, expected in zip(texts, by_them(path, texts), by_us(tokenizer, texts), strict=True):
        assert found == expected, text


@pytest.mark.parametrize("kind", ["first", "always", "never"])
def test_sentence_piece_is_tokenized_alike(kind: str, tmp_path: Path) -> None:
    library = sentence_piece(LEGACY) if kind == "always" else sentence_piece(scheme=kind)
    tokenizer = assembled_from(library, "<s>", "</s>")
    path = vocabulary_file(tokenizer, tmp_path / "v.gguf")
    again = tokenizer_from_gguf(open_gguf(path).metadata, path)
    texts = [text for text in LONG_TEXT.splitlines() if text and not any(mark in text for mark in ("<s>", "</s>"))]
    if kind == "first":  # puts no second space before a text that begins with one; llama.cpp knows no such thing
        texts = [text for text in texts if not text.startswith(" ")]
    for text, found, expected in zip(texts, by_them(path, texts), by_us(again, texts), strict=True):
        assert found == expected, text
