"""The tokenizers: llama.cpp's vectors, slow oracles over small made-up vocabularies, streaming, hostile metadata."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import ADDED, FAMILIES, put, strings, tokenizer_json, trained, well_formed
from tokenizers import Tokenizer
from tokenizers.normalizers import NFC

from tinyslm import tokenizer
from tinyslm.convert import vocabulary
from tinyslm.errors import FileError, OptionError, TinySLMError, UnsupportedError
from tinyslm.gguf import GGUF
from tinyslm.tokenizer import bpe
from tinyslm.tokenizer.pretokenizers import PRETOKENIZERS

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
VOCABS = ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "starcoder"]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data are not here")
WORDS = ["low", "lower", "lowest", " low", " the", "the", "th", "er", " t", "est", "lo", "  ", "we"]

Metadata = dict[str, object]


def keys(**values: object) -> Metadata:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def small_spm(extra: dict[str, int] | None = None, **changes: object) -> Metadata:
    """Three specials, all bytes, the letters, then words whose score is minus their place; `extra`: text to type."""
    letters = sorted({char for word in WORDS for char in word.replace(" ", "▁")} | {"é", "中", "<", "s", ">", "/"})
    words = [word.replace(" ", "▁") for word in WORDS]
    extra = extra or {}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words, *letters, *extra]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters)) + list(extra.values())
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))] + [-1000.0] * (len(letters) + len(extra))
    made = keys(model="llama", tokens=tokens, token_type=np.array(types, np.int32), scores=np.array(scores, np.float32),
                bos_token_id=1, eos_token_id=2, unknown_token_id=0)  # fmt: skip
    return made | keys(**changes)


def small_bpe(pre: str = "gpt-2", **changes: object) -> Metadata:
    """All bytes, five merges, then two control tokens and two user-defined ones."""
    space = "Ġ"
    merges = ["l o", "lo w", f"{space} low", "e r", f"{space} t", "t h", "1 2"]
    tokens = [*bpe.BYTES, *(merge.replace(" ", "") for merge in merges), "<|start|>", "<|im_end|>", "<tool>", "<tool>>"]
    types = [1] * (256 + len(merges)) + [3, 3, 4, 4]
    made = keys(model="gpt2", pre=pre, tokens=tokens, merges=merges, token_type=np.array(types, np.int32),
                bos_token_id=len(tokens) - 4, eos_token_id=len(tokens) - 3)  # fmt: skip
    return made | keys(**changes)


def load(metadata: Metadata) -> tokenizer.Tokenizer:
    return tokenizer.load(metadata, "made-up.gguf")


_LOADED: dict[str, tokenizer.Tokenizer] = {}


def real(name: str) -> tokenizer.Tokenizer:
    if name not in _LOADED:
        path = DATA / "vocab" / f"ggml-vocab-{name}.gguf"
        with GGUF.open(path) as file:
            _LOADED[name] = tokenizer.load(file.metadata, path)
    return _LOADED[name]


def streamed(tok: tokenizer.Tokenizer, ids: list[int], **how: bool) -> str:
    decoder = tok.stream(**how)
    parts = [decoder.push(i) for i in ids]
    for part in parts[:-1]:
        assert not any(0xD800 <= ord(char) < 0xE000 for char in part)
    return "".join(parts) + decoder.flush()


# Real vocabularies


@needs_data
@pytest.mark.parametrize("name", VOCABS)
def test_vectors(name: str) -> None:
    tok = real(name)
    path = DATA / "vocab" / f"ggml-vocab-{name}.gguf"
    with open(f"{path}.inp", encoding="utf-8", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    wanted = [list(map(int, line.split())) for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(texts) == len(wanted) > 40
    for text, ids in zip(texts, wanted, strict=True):
        assert tok.encode(text, bos=False) == ids, text
        assert tok.decode(ids) == text
        assert streamed(tok, ids) == text


@needs_data
@pytest.mark.parametrize("name", VOCABS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x3FFFF), max_size=60))
def test_round_trip(name: str, text: str) -> None:
    tok = real(name)
    text = text.replace("▁", "_")  # SentencePiece writes a space so, and cannot tell the two apart
    if name == "qwen2":
        text = NFC().normalize_str(text)
    ids = tok.encode(text, bos=False)
    assert tok.decode(ids) == text
    assert streamed(tok, ids) == text
    assert tok.eog.isdisjoint(ids)


@needs_data
@pytest.mark.parametrize("name", VOCABS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), special=st.booleans(), continues=st.booleans())
def test_streaming_is_decoding(name: str, data: st.DataObject, special: bool, continues: bool) -> None:
    tok = real(name)
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1) | st.integers(0, 300), max_size=20))
    whole = tok.decode(ids, special=special, continues=continues)
    assert streamed(tok, ids, special=special, continues=continues) == whole


@needs_data
def test_golden_text() -> None:
    for path in sorted((DATA / "stories260K").glob("*.golden.json")):
        golden = json.loads(path.read_text())
        with GGUF.open(path.with_suffix("").with_suffix(".gguf")) as file:
            tok = tokenizer.load(file.metadata, path)
        assert tok.encode(golden["prompt"]) == golden["prompt_ids"]
        assert tok.decode(golden["greedy_ids"], continues=True) == golden["greedy_text"]


@needs_data
def test_ends_of_generation() -> None:
    ends = {name: {real(name).token_text(i) for i in real(name).eog} for name in VOCABS}
    assert ends["llama-spm"] == {"</s>"}
    assert ends["phi-3"] == {"<|end|>", "<|endoftext|>", "</s>"}
    assert ends["llama-bpe"] == {"<|eot_id|>", "<|end_of_text|>"}
    assert ends["qwen2"] == {"<|im_end|>", "<|endoftext|>"}
    assert [name for name in VOCABS if real(name).add_bos] == ["llama-bpe", "llama-spm", "phi-3"]


@needs_data
def test_control_tokens_in_text() -> None:
    llama, qwen, phi, spm = real("llama-bpe"), real("qwen2"), real("phi-3"), real("llama-spm")
    text = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert llama.encode(text, bos=True, special=True) == [128000, 128006, 882, 128007, 271, 13347, 128009]
    assert llama.decode(llama.encode(text)) == text
    assert llama.decode(llama.encode(text, special=True)) == "user\n\nHi"
    assert llama.decode(llama.encode(text, bos=False, special=True), special=True) == text
    assert qwen.encode("<|im_start|>", special=True) == [151644]
    assert 151644 not in qwen.encode("<|im_start|>")
    assert spm.encode("</s>a", special=True) == [1, 2, 263]  # a text after a token gets its space, as in llama.cpp
    assert {0, 1, 2}.isdisjoint(spm.encode("<s></s><unk>", bos=False))
    # Phi-3's markers swallow what white space follows them; its <s> and <|endoftext|> do not
    assert phi.encode("<|user|>\n a<|end|> \n", special=True) == [1, 32010, 263, 32007]
    assert phi.encode("<|user|>a<|end|>", special=True) == [1, 32010, 263, 32007]
    assert phi.encode("<|endoftext|>\n", bos=False, special=True) == [32000, 29871, 13]
    assert phi.encode("</s>", bos=False) == phi.encode("</s>", bos=False, special=False) != [2]


@needs_data
def test_quick_enough() -> None:
    with GGUF.open(DATA / "vocab" / "ggml-vocab-llama-bpe.gguf") as file:
        metadata = file.metadata
    start = time.process_time()
    tok = load(metadata)
    assert time.process_time() - start < 3  # half a second; on the processor, for others may use it too
    start = time.process_time()
    for text in ("a" * 300_000, " " * 300_000 + "x", "<|" * 150_000, "é" * 300_000):
        assert tok.decode(tok.encode(text, special=True)) == text
    assert time.process_time() - start < 20


# Made-up vocabularies against slow oracles


def spm_oracle(metadata: Metadata, text: str) -> list[int]:
    """Join the neighbours whose union has the best score, leftmost first, until none is a piece; bytes for the rest."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    assert isinstance(tokens, list)
    assert isinstance(scores, np.ndarray)
    types = metadata["tokenizer.ggml.token_type"]
    assert isinstance(types, np.ndarray)
    ids = {text: i for i, text in enumerate(tokens) if types[i] == 1}
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


def bpe_oracle(metadata: Metadata, words: list[str]) -> list[int]:
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    assert isinstance(tokens, list)
    assert isinstance(merges, list)
    spell = {byte: char for char, byte in bpe.BYTES.items()}
    out: list[int] = []
    for word in words:
        parts = [spell[byte] for byte in word.encode()]
        while True:
            pairs = [f"{a} {b}" for a, b in itertools.pairwise(parts)]
            ranked = [(merges.index(pair), i) for i, pair in enumerate(pairs) if pair in merges]
            if not ranked:
                break
            i = min(ranked)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        out += map(tokens.index, parts)
    return out


some_text = st.text(alphabet="lowerth s  é中😀\n<>/\0", max_size=40) | st.lists(st.sampled_from(WORDS)).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=some_text, prefix=st.booleans())
def test_spm_merges(text: str, prefix: bool) -> None:
    metadata = small_spm(add_space_prefix=prefix)
    tok = load(metadata)
    ids = tok.encode(text, bos=False)
    assert ids == spm_oracle(metadata, (" " if prefix and text else "") + text)
    assert tok.decode(ids) == text == streamed(tok, ids)


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.text(alphabet="lowerthé", min_size=1, max_size=8).map(" {}".format), max_size=6))
def test_bpe_merges(words: list[str]) -> None:
    metadata = small_bpe()
    tok = load(metadata)
    ids = tok.encode("".join(words))
    assert ids == bpe_oracle(metadata, words)
    assert tok.decode(ids) == "".join(words) == streamed(tok, ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(), max_size=30))
def test_any_text_at_all(text: str) -> None:
    """Lone surrogates become U+FFFD; nothing else is changed, NUL included."""
    seen = "".join("\ufffd" if unicodedata.category(char) == "Cs" else char for char in text).replace("▁", " ")
    for tok in (load(small_spm()), load(small_bpe())):
        ids = tok.encode(text, bos=False, special=True)
        assert tok.decode(ids, special=True).replace("▁", " ") == seen


def test_space_prefix() -> None:
    with_space, without = load(small_spm()), load(small_spm(add_space_prefix=False))
    assert with_space.encode("low", bos=False) == without.encode(" low", bos=False)
    assert with_space.encode("", bos=False) == without.encode("", bos=False) == []
    ids = without.encode(" low", bos=False)
    assert without.decode(ids) == " low"
    assert with_space.decode(ids) == "low"
    assert with_space.decode([1, *ids]) == "low"
    assert with_space.decode([1, *ids], special=True) == "<s> low"
    assert with_space.decode(ids, continues=True) == " low"
    assert streamed(with_space, ids, continues=True) == " low"
    assert with_space.decode(with_space.encode("  low", bos=False)) == "  low"
    squeezed = load(small_spm(remove_extra_whitespaces=True))
    assert squeezed.encode("  low   the ") == squeezed.encode("low the")
    assert squeezed.encode("low ▁ ▁") == squeezed.encode("low")
    assert squeezed.encode(" ▁ ", bos=False) == squeezed.encode("   ", bos=False) == []
    ids = squeezed.encode("▁low", bos=False)
    assert len(ids) == 2  # two spaces and the word, or one and a word that begins with one
    assert squeezed.decode(ids) == streamed(squeezed, ids) == "low"


def test_user_defined_tokens() -> None:
    tok = load(small_bpe())
    tool, longer = tok.vocab_size - 2, tok.vocab_size - 1
    assert tok.encode("<tool>low<tool>><tool") == [tool, 257, longer, *tok.encode("<tool")]
    assert tok.encode("<<tool>>>") == [*tok.encode("<"), longer, *tok.encode(">")]
    spm = load(small_spm({"<a>": 4, "@": 4, "\n": 4, "  \n": 4}))
    first = spm.vocab_size - 4
    assert spm.encode("<a>@b  \n\nlow", bos=False)[:2] == [first, first + 1]
    assert spm.encode("  \n\nlow", bos=False)[:2] == [first + 3, first + 2]
    assert spm.decode([first + 3]) == "  \n"  # no space was put before it
    assert spm.encode("<a>low", bos=False) == [first, *spm.encode("low", bos=False)]


def test_tokens_that_the_library_refuses(capfd: pytest.CaptureFixture[str]) -> None:
    tok = load(small_spm({"": 1, "a\0": 1, "\0": 1}))
    assert tok.encode("\0", bos=False)[-1] == 3  # the byte
    assert capfd.readouterr() == ("", "")


def test_added_tokens_are_found_in_text() -> None:
    plain = small_spm({"<a>": 1})
    added = small_spm({"<a>": 1}, added_tokens=["<a>"])
    assert load(plain).encode("<a>", bos=False) != [load(added).vocab_size - 1]
    assert load(added).encode("<a>", bos=False) == [load(added).vocab_size - 1]


def test_bos_and_eos() -> None:
    spm = load(small_spm())
    assert (spm.bos, spm.eos, spm.unk, spm.pad, spm.add_bos, spm.add_eos) == (1, 2, 0, None, True, False)
    low = spm.encode("low", bos=False)
    assert spm.encode("low") == spm.encode("low", bos=True) == [1, *low]
    both = load(small_spm(add_eos_token=True, add_bos_token=False))
    assert both.encode("low") == [*low, 2]
    assert both.encode("low", bos=True) == [1, *low, 2]
    assert both.encode("low", bos=False) == low
    plain, llama = load(small_bpe()), load(small_bpe("llama-bpe"))
    assert (plain.add_bos, llama.add_bos) == (False, True)
    assert llama.encode("low") == [llama.bos, *plain.encode("low")]
    with pytest.raises(OptionError, match="no BOS"):
        load({key: value for key, value in small_bpe().items() if "bos" not in key}).encode("low", bos=True)


def test_pieces() -> None:
    spm, tok = load(small_spm()), load(small_bpe())
    assert [spm.piece(i) for i in (0, 1, 3, 258, 262)] == [b"", b"", b"\x00", b"\xff", b" low"]
    assert spm.token_text(262) == "▁low"
    assert tok.piece(258) == b" low"
    assert tok.token_text(258) == "Ġlow"
    assert [tok.piece(tok.vocab_size - n) for n in (4, 3, 2)] == [b"", b"", b"<tool>"]
    decoder = spm.stream()
    assert [decoder.push(3 + byte) for byte in "é中".encode()] == ["", "é", "", "", "中"]
    assert decoder.push(3 + 0xE4) == ""
    assert decoder.flush() == "\ufffd"
    for bad in (-1, spm.vocab_size):
        with pytest.raises(OptionError, match="outside the vocabulary"):
            spm.piece(bad)
        with pytest.raises(OptionError, match="outside the vocabulary"):
            spm.decode([bad])


def test_ends_are_control_tokens() -> None:
    texts = ["<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|eot_id|>"]
    tok = load(small_spm(dict.fromkeys(texts, 4)))
    assert {tok.token_text(i) for i in tok.eog} == {"</s>", *texts} - {"<|end|>"}  # which ends a message only
    assert tok.eog.isdisjoint(tok.encode("".join(texts), bos=False))
    assert load(small_bpe(eot_token_id=260, eom_token_id=3)).eog >= {260, 3}
    merged = ["< /", "</ s", "</s >"]
    words = small_bpe()["tokenizer.ggml.tokens"]
    assert isinstance(words, list)
    word = keys(tokens=[*words, "</", "</s", "</s>"], token_type=np.full(len(words) + 3, 1, np.int32), merges=merged)
    tok = load({**small_bpe(), **word})
    assert len(words) + 2 not in tok.eog  # here an ordinary word
    # a control token that merges lead to, or from, is not reached by text
    kinds = np.array([1] * 263 + [3, 3, 4, 4, 1, 3, 1], np.int32)
    tok = load({**small_bpe("deepseek-v3"), **word, **keys(token_type=kinds)})
    assert tok.decode(tok.encode("</s>")) == "</s>"
    assert tok.eog.isdisjoint(tok.encode("</s>"))


def test_without_token_types() -> None:
    for metadata in (small_spm(), small_bpe()):
        typed = load(metadata)
        del metadata["tokenizer.ggml.token_type"]
        tok = load(metadata)
        assert tok.eog == typed.eog
        assert tok.encode("low </s><|im_end|> é", special=True) == typed.encode("low </s><|im_end|> é", special=True)


# Pre-tokenizers


def cut(name: str, text: str) -> list[str]:
    words = bpe.cutter(PRETOKENIZERS[name]).pre_tokenize_str(text)
    return [bpe.raw_bytes(word).decode(errors="surrogateescape") for word, _ in words]


CUTS = [
    ("gpt-2", "Hello  world's 123\n\n x", "Hello| | world|'s| 123|\n\n| x"),
    ("starcoder", "a 123 b", "a| |1|2|3| b"),
    ("llama-bpe", "I'LL  pay $12345.\n\nOk", "I|'LL| | pay| $|123|45|.\n\n|Ok"),
    ("qwen2", "I'LL pay 123", "I|'LL| pay| |1|2|3"),
    ("qwen35", "e\u0301a 12", "e\u0301a| |1|2"),
    ("gpt-4o", "HelloWORLD's don't 1234/\n", "Hello|WORLD's| don't| |123|4|/\n"),
    ("tekken", "HelloWORLD's 12/\n", "Hello|WORLD|'s| |1|2|/\n"),
    ("falcon", "a (b) 12345 x² \u0438\u043d", "a| |(|b|)| |123|45| x|\udcc2|\udcb2| \u0438\udcd0|\udcbd"),
    ("default", "a (b`) 12345", "a| |(|b|`|)| |123|45"),
    ("deepseek-llm", "Don't\n 中文 12", "Don|'|t|\n| |中文| |1|2"),
    ("deepseek-coder", "x+=1 中\n", "x|+=|1| |中|\n"),
    ("deepseek-v3", "中文12345 .net a!b", "中文|123|45| .|net| a|!b"),
    ("bloom", "a, b c", "a|,| b| c"),
    ("viking", "a12 b", "a|1|2| b"),
    ("tiny_aya", "12345 a", "12|345| a"),
]


@pytest.mark.parametrize(("name", "text", "words"), CUTS)
def test_cuts(name: str, text: str, words: str) -> None:
    assert cut(name, text) == words.split("|")


PARTS = st.sampled_from([
    "a", "B", "zz", "Qu", "1", "22", "3456", ".", "'s", "'LL", "!", "é", "中", "한", "😀", "(", "|", "ا", "м", "\u0301",
    "…", "ſ", "ǅ", "\n", "\r\n", "\t", " ", "  ", "\u3000",
])  # fmt: skip


@pytest.mark.parametrize("name", list(PRETOKENIZERS))
@settings(max_examples=30, deadline=None)
@given(text=st.lists(PARTS).map("".join))
def test_cutting_at_a_seam_changes_nothing(name: str, text: str) -> None:
    parts, start = [], 0
    for seam in bpe._SEAM.finditer(text):
        parts.append(text[start : seam.start()])
        start = seam.start()
    parts.append(text[start:])
    assert [word for part in parts for word in cut(name, part)] == cut(name, text)


def test_long_texts_are_fed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tok, text = load(small_bpe()), "low the lower 12 a\n b" * 20
    whole = tok.encode(text)
    monkeypatch.setattr(bpe, "CHUNK", 7)
    assert tok.encode(text) == whole


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "smollm", "qwen2", "falcon"])
def test_first_texts_have_the_ids_of_any(pre: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "",
        "lower",
        " the lowerthe 12 lowé\n",
        "lowe\u0301 ½1",
        "\0<|im_end|>the",
        *("lower the 123 " * 30).split("3"),
    ]
    tok = load(small_bpe(pre))
    models = list[bpe._Models]()
    made = bpe._Models._make

    def make(self: bpe._Models, words: dict[str, int], merges: list[str]) -> object:
        models.append(self)
        return made(self, words, merges)

    monkeypatch.setattr(bpe._Models, "_make", make)
    first = [tok.encode(text, special=True) for text in texts]
    before = len(models)
    assert before > 30, "they had models of their own"
    tok.encode("wet" * 40)
    assert [tok.encode(text, special=True) for text in texts] == first
    assert len(models) == before + 1, "one more, for all"
    monkeypatch.setattr(bpe, "FIRST", 0)
    assert [load(small_bpe(pre)).encode(text, special=True) for text in texts] == first


def test_many_short_texts_share_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made, sizes = bpe._Models._make, list[int]()

    def make(self: bpe._Models, words: dict[str, int], merges: list[str]) -> object:
        sizes.append(len(words))
        return made(self, words, merges)

    monkeypatch.setattr(bpe._Models, "_make", make)
    tok = load(small_bpe("gpt-2"))
    for _ in range(200):
        tok.encode("a")
    assert len(sizes) == bpe.FIRST // bpe.LEAST + 1
    assert sizes[-1] == max(sizes)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_cuts_of_the_library(name: str) -> None:
    """The last texts hold what is a digit or punctuation in some versions of Unicode only."""
    parts = {"pre_tokenizer": FAMILIES[name][0], "version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    wanted, made = Tokenizer.from_str(json.dumps(parts)).pre_tokenizer, bpe.cutter(PRETOKENIZERS[name])
    for text in [*map(well_formed, strings(120, 2)), "!\U00011de0", "!\u061d", "\u166d!"]:
        words = [[word for word, _ in cutter.pre_tokenize_str(text)] for cutter in (wanted, made)]
        assert words[0] == words[1]


@pytest.fixture(scope="module")
def uncut() -> tuple[dict[str, int], list[str]]:
    return trained(300)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_agreement_with_the_library(name: str, uncut: tuple[dict[str, int], list[str]], tmp_path: Path) -> None:
    """A published tokenizer.json through conversion, against the library; `check_tokenizers.py` tries many more."""
    made = tokenizer_json(name, *uncut)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metadata = vocabulary.read(tmp_path, {"vocab_size": put(tmp_path, made)}, FAMILIES[name][3])
    found = str(metadata["tokenizer.ggml.pre"])
    assert PRETOKENIZERS[found] == PRETOKENIZERS[name]
    tok, library = tokenizer.load(metadata, tmp_path), Tokenizer.from_str(json.dumps(made))
    for text in strings(120, 1):
        ids = library.encode(well_formed(text), add_special_tokens=False).ids
        assert tok.encode(text, special=True, bos=False) == ids, ascii(text)
        assert tok.decode(ids, special=True) == library.decode(ids, skip_special_tokens=False) == streamed(
            tok, ids, special=True
        )  # fmt: skip
    controls = [metadata["tokenizer.ggml.tokens"].index(text) for text, special in ADDED if special]  # type: ignore[attr-defined]
    assert set(controls).isdisjoint(tok.encode("".join(text for text, _ in ADDED), bos=False))


def test_nfc() -> None:
    """What the models' own files ask for, between tokens too, and seams included; others leave a text as it is."""
    apart, joined = "e\u0301 \u1100\u1161 \u212b", "\u00e9 \uac00 \u00c5"
    for name in ("qwen2", "stablelm2", "olmo", "mpt", "command-r"):
        tok = load(small_bpe(name))
        assert tok.decode(tok.encode(apart)) == joined
        assert tok.decode(tok.encode(f"<tool>{apart}<|im_end|>{apart}", special=True)) == f"<tool>{joined}{joined}"
    for name in ("gpt-2", "llama-bpe", "smollm", "dbrx", "gpt-4o", "tekken", "qwen35", "deepseek-r1-qwen"):
        tok = load(small_bpe(name))
        assert tok.decode(tok.encode(apart, bos=False)) == apart


def test_ignoring_merges() -> None:
    words = small_bpe()["tokenizer.ggml.tokens"]
    assert isinstance(words, list)
    more = keys(tokens=[*words, "wet"], token_type=np.array([1] * 263 + [3, 3, 4, 4, 1], np.int32))
    assert load({**small_bpe("llama-bpe"), **more}).encode("wet", bos=False) == [len(words)]
    assert len(load({**small_bpe("qwen2"), **more}).encode("wet", bos=False)) == 3
    hidden = keys(token_type=np.array([1] * 263 + [3, 3, 4, 4, 3], np.int32))  # a control token that looks like a word
    assert len(load({**small_bpe("llama-bpe"), **more, **hidden}).encode("wet", bos=False)) == 3


# Files that lie


def broken(**changes: object) -> list[Metadata]:
    return [small_spm(**changes), small_bpe(**changes)]


@pytest.mark.parametrize(
    ("metadata", "key", "words"),
    [
        *((made, "model", "wrong type") for made in broken(model=3)),
        ({}, "model", "no tokenizer"),
        *((made, "tokens", "empty") for made in broken(tokens=[])),
        *((made, "tokens", "wrong type") for made in broken(tokens="abc")),
        *((made, "tokens", "wrong type") for made in broken(tokens=[1, 2])),
        *((made, "tokens", "same text") for made in broken(tokens=["a", "b", "a"])),
        *((made, "tokens", "not UTF-8") for made in broken(tokens=["a", "\udcff"])),
        *((made, "token_type", "wrong length") for made in broken(token_type=np.ones(3, np.int32))),
        *((made, "token_type", "wrong type") for made in broken(token_type=[1, 2])),
        *((made, "token_type", "wrong type") for made in broken(token_type=np.ones((2, 2), np.int32))),
        *((made, "bos_token_id", "0 to") for made in broken(bos_token_id=99999)),
        *((made, "eos_token_id", "0 to") for made in broken(eos_token_id=-7)),
        *((made, "eot_token_id", "wrong type") for made in broken(eot_token_id="x")),
        *((made, "unknown_token_id", "wrong type") for made in broken(unknown_token_id=True)),
        *((made, "add_bos_token", "wrong type") for made in broken(add_bos_token=1)),
        *((made, "eos_token_id", "add_eos_token") for made in broken(add_eos_token=True, eos_token_id=0xFFFFFFFF)),
        *((made, "added_tokens", "not among") for made in broken(added_tokens=["nowhere"])),
        (small_spm(scores=np.zeros(3, np.float32)), "scores", "wrong length"),
        (small_spm(scores=None), "scores", "missing"),
        (small_spm(scores=np.full(len(small_spm()["tokenizer.ggml.tokens"]), np.nan)), "scores", "finite"),  # type: ignore[arg-type]
        (small_spm({"▁low": 1}), "tokens", "same text"),
        (small_spm({"<0xZZ>": 6}), "tokens", "no byte"),
        (small_spm({"x": 7}), "token_type", "unknown token type"),
        (small_bpe(merges=None), "merges", "missing"),
        *((small_bpe(merges=[bad]), "merges", "does not fit") for bad in ("ab", "", "a b c", "a b", "a  b", "Ġlo w")),
        (small_bpe(merges=["a nowhere"]), "merges", "does not fit"),
        (keys(model="gpt2", pre="gpt-2", tokens=list(bpe.BYTES), merges=["Ġ Ċ"]), "merges", "does not fit"),  # a panic
        (small_bpe(merges=["\udcff a"]), "merges", "not UTF-8"),
        (small_bpe() | keys(pre=7), "pre", "wrong type"),
    ],
)
def test_broken_metadata(metadata: Metadata, key: str, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        load(metadata)
    assert not isinstance(caught.value, UnsupportedError)
    assert (caught.value.path, caught.value.where) == ("made-up.gguf", f"tokenizer.ggml.{key}")


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        *((small_spm(model=name), ["tokenizer.ggml.model", name]) for name in ("bert", "t5", "rwkv", "plamo2", "none")),
        (small_bpe("klingon"), ["tokenizer.ggml.pre", "klingon"]),
        (small_spm(precompiled_charsmap=np.ones(4, np.uint8)), ["precompiled_charsmap"]),
    ],
)
def test_unsupported(metadata: Metadata, names: list[str]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        load(metadata)
    assert all(name in str(caught.value) for name in ["made-up.gguf", *names])


def test_warnings() -> None:
    with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre is missing"):
        load(small_bpe() | keys(pre=None))
    with pytest.warns(UserWarning, match="padding_token_id = 5000"):
        assert load(small_spm(padding_token_id=5000)).pad is None


def test_a_vocabulary_without_some_characters() -> None:
    metadata = small_bpe()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tok = load(metadata | keys(tokens=["gone" if text == "z" else text for text in tokens]))
    assert tok.decode(tok.encode("lower")) == "lower"
    with pytest.warns(UserWarning, match="0x7A"):
        assert tok.decode(tok.encode("zoo")) == "oo"
    poor = keys(model="llama", tokens=["▁", "a"], scores=np.zeros(2, np.float32), token_type=np.ones(2, np.int32))
    for key in ("bos", "eos", "unknown"):
        poor[f"tokenizer.ggml.{key}_token_id"] = 0xFFFFFFFF
    tok = load(poor)
    assert tok.encode("a a") == [0, 1, 0, 1]
    with pytest.raises(OptionError, match="vocabulary"):
        tok.encode("b")


KEYS = [
    "model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id", "unknown_token_id",
    "add_bos_token", "add_eos_token", "added_tokens", "precompiled_charsmap", "padding_token_id",
]  # fmt: skip
junk = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 400), st.floats(), st.text(max_size=5),
    st.lists(st.text(alphabet="ab<>/s0x4▁ Ġ\0\udcff", max_size=6), max_size=6),
    st.sampled_from([np.zeros(0), np.ones(4, np.int32), np.full(6, 6, np.int8), np.full(3, np.inf), (1, 2)]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    made=st.sampled_from([small_spm(), small_bpe()]),
    changes=st.dictionaries(st.sampled_from(KEYS), junk, min_size=1, max_size=4),
)
def test_junk_never_crashes(made: Metadata, changes: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = ""
        try:
            tok = load(made | keys(**changes))
            tok.decode(tok.encode("a <s>b\0", special=True), special=True)
        except TinySLMError as error:
            message = str(error)
    assert len(message) < 600


# Around it


@pytest.mark.parametrize("metadata", [small_spm(), small_bpe()])
def test_threads(metadata: Metadata) -> None:
    tok, text = load(metadata), "low the lower é 中 " * 50
    wanted = tok.encode(text)
    wrong: list[bool] = []

    def work() -> None:
        wrong.extend(tok.encode(text) != wanted or tok.decode(wanted) != text for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 200
    assert not any(wrong)


def test_import_is_light() -> None:
    code = "import sys, tinyslm.tokenizer; print({'sentencepiece', 'tokenizers', 'google.protobuf'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
