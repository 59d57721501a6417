"""Published folders to GGUF: the goldens' models come back to the bit, tokenizers agree with their libraries, and what
is missing, broken or hostile is one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import CONFIGS, GOLDENS, bf16, bpe_json, folder, published, safetensors, small_json

from tinyslm import load, tokenizer
from tinyslm.cli import convert as verb
from tinyslm.cli import main
from tinyslm.convert import KINDS, convert_folder, pretokenizer, requirements, vocabulary
from tinyslm.errors import FileError, OptionError, TinySLMError, UnsupportedError
from tinyslm.gguf import GGUF
from tinyslm.tokenizer.pretokenizers import PRETOKENIZERS

TEXTS = ["low lower  the 12 112", "Once\n\n upon a time…", "né 😀 中文\t\x00 <tool>x", " leading", "", "a" * 50]


def values(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray], dict[str, str]]:
    with GGUF.open(path) as file:
        floats = {t.name: t.format.dequantise(file.read(t)).reshape(t.shape[::-1]) for t in file.tensors.values()}
        return dict(file.metadata), floats, {t.name: t.type_name for t in file.tensors.values()}


# ---- models ----


@pytest.mark.parametrize("name", CONFIGS)
def test_a_golden_comes_back(name: str, tmp_path: Path) -> None:
    convert_folder(folder(tmp_path / "hf", name), tmp_path / "out.gguf", "f16")
    keys, got, _ = values(tmp_path / "out.gguf")
    wanted_keys, wanted, _ = values(GOLDENS / f"{name}.gguf")
    assert got.keys() == wanted.keys()
    for tensor, expected in wanted.items():
        # a norm less 1 and more 1 again is rounded
        np.testing.assert_allclose(got[tensor], expected, rtol=0, atol=1e-6 * (name == "gemma"), err_msg=tensor)
    assert {key: keys.get(key) for key in wanted_keys} == pytest.approx(wanted_keys)
    assert (keys["general.file_type"], keys["general.name"]) == (1, "hf")
    golden = np.load(GOLDENS / f"{name}.npz")
    with load(tmp_path / "out.gguf", threads=1) as model:
        logits = model.logits(golden["ids"].tolist())[golden["at"]]
    assert np.abs(logits - golden["logits"]).max() < 0.04


def test_types(tmp_path: Path) -> None:
    assert verb.TYPES == KINDS
    tensors = {name: bf16(a) for name, a in published("qwen2").items()}
    hf = folder(tmp_path / "hf", "qwen2", tensors)
    exact = {name: (a.astype(np.uint32) << 16).view(np.float32) for name, a in tensors.items()}
    for kind, types in {"auto": {"BF16", "F32"}, "bf16": {"BF16", "F32"}, "f16": {"F16", "F32"}, "f32": {"F32"},
                        "q8_0": {"Q8_0", "F16", "F32"}}.items():  # fmt: skip
        result = convert_folder(hf, tmp_path / "out.gguf", kind)
        _, got, named = values(tmp_path / "out.gguf")
        assert set(named.values()) == types == set(result.types)
        assert named["blk.0.attn_norm.weight"] == named["blk.0.attn_q.bias"] == "F32"
        np.testing.assert_array_equal(got["blk.0.attn_q.bias"], exact["model.layers.0.self_attn.q_proj.bias"])
        down, wanted = got["blk.1.ffn_down.weight"], exact["model.layers.1.mlp.down_proj.weight"]
        np.testing.assert_allclose(down, wanted, atol=0 if kind != "q8_0" else np.abs(wanted).max() / 200)
    assert named["blk.1.ffn_down.weight"] == "Q8_0"
    assert named["blk.1.ffn_up.weight"] == "F16"  # rows of 48


def test_parts_and_names_without_prefix(tmp_path: Path) -> None:
    convert_folder(folder(tmp_path / "hf", "gpt2"), tmp_path / "whole.gguf")
    whole = {name.removeprefix("transformer."): a for name, a in published("gpt2").items()}
    whole["h.0.attn.bias"] = np.zeros((1, 1, 4, 4), np.float32)
    hf, names = folder(tmp_path / "hf", "gpt2"), list(whole)
    (hf / "model.safetensors").unlink()
    places = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(names)}
    for part in set(places.values()):
        safetensors(hf / part, {name: whole[name] for name in names if places[name] == part})
    (hf / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    convert_folder(hf, tmp_path / "parts.gguf")
    one, other = values(tmp_path / "whole.gguf")[1], values(tmp_path / "parts.gguf")[1]
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    (hf / "part-1.safetensors").unlink()
    with pytest.raises(FileError, match=r"part-1.safetensors: this part is missing.*download"):
        convert_folder(hf, tmp_path / "out.gguf")
    places = {"wte.weight": "../part-0.safetensors"}
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(FileError, match="no name of a file of this folder"):
        convert_folder(hf, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("llama", "quantization_config", {"quant_method": "awq"}), ("llama", "is_encoder_decoder", True),
        ("mistral", "layer_types", ["full_attention", "sliding_attention"]), ("qwen2", "use_sliding_window", True),
        ("smollm3", "no_rope_layers", [1, 1, 0, 1, 1]), ("smollm3", "no_rope_layers", None),
        ("gemma", "hidden_activation", "gelu"), ("gemma2", "query_pre_attn_scalar", 9),
        ("gemma3_text", "use_bidirectional_attention", True), ("phi", "qk_layernorm", True),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True), ("opt", "activation_function", "gelu"),
        ("olmo2", "clip_qkv", 8.0), *((kind, "hidden_act", "relu") for kind in ("phi3", "stablelm", "granite")),
    ],
)  # fmt: skip
def test_what_gguf_cannot_say_is_refused_by_name(model_type: str, key: str, value: object) -> None:
    sound = {"model_type": model_type, "num_hidden_layers": 5, "hidden_size": 32, "num_attention_heads": 4,
             "head_dim": 8, "hidden_act": None, "no_rope_layers": [1, 1, 1, 0, 1]}  # fmt: skip
    requirements.check(sound)
    asked = {**sound, key: value} | ({"no_rope_layer_interval": 3} if value is None else {})
    with pytest.raises(OptionError, match=rf"^config\.json: {key} = .* is not supported$"):
        requirements.check(asked)


def test_wrong_folders(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"

    def refused(match: str, kind: type[TinySLMError] = FileError, name: str = "llama", **config: Any) -> None:
        (hf / "config.json").write_text(json.dumps(CONFIGS[name] | config))
        with pytest.raises(kind, match=match) as caught:
            convert_folder(hf, out)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("*out.gguf*")), "something was left behind"

    with pytest.raises(FileError, match="no folder: name a folder"):
        convert_folder(tmp_path / "none", out)
    hf = folder(tmp_path / "hf", "llama")
    refused("'bert' is not supported; there are llama, mistral", model_type="bert")
    refused("cannot be understood", model_type=["llama"])
    refused("wrong type.*head_count", num_attention_heads="4")
    refused("rotations scaled by", rope_parameters={"rope_type": "mine"})
    refused("hidden_act = 'gelu' is not supported", hidden_act="gelu")
    refused("absurd.*vocab_size", vocab_size=-1)
    refused("wrong shape.*ffn_gate.weight", intermediate_size=33)
    refused("a tensor is missing.*blk.2", num_hidden_layers=3)
    with pytest.raises(OptionError, match="no type 'q4_0'"):
        convert_folder(hf, out, "q4_0")
    with pytest.raises(OptionError, match="no pre-tokenizer"):
        convert_folder(hf, out, pre="mine")
    spoiled = small_json()
    spoiled["model"]["merges"] = ["A Z"]
    (hf / "tokenizer.json").write_text(json.dumps(spoiled))
    refused("merge 0 does not fit the tokens")
    (hf / "tokenizer.json").write_text(json.dumps(small_json()))
    (hf / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    refused("no UTF-8")
    (hf / "tokenizer_config.json").unlink()
    whole = published("llama")
    safetensors(hf / "model.safetensors", whole | {"model.layers.0.extra.weight": np.zeros((2, 2), np.float32)})
    refused("extra.weight' has no place")
    safetensors(hf / "model.safetensors", whole | {"lm_head.weight": np.full((40, 24), 1e9, np.float32)})
    with pytest.raises(FileError, match="too large for F16; bf16"):
        convert_folder(hf, out, "f16")
    assert not list(tmp_path.glob("*out.gguf*"))
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    refused("pickles.*save_pretrained")
    (hf / "config.json").unlink()
    with pytest.raises(FileError, match=r"there is no config.json in it"):
        convert_folder(hf, out)


def header(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "empty": (b"", "cut short"),
    "a header beyond the file": (header({}, length=1 << 62), "cut short"),
    "no JSON": (header(b"{]"), "no JSON"),
    "deep JSON": (header(b"[" * 200_000), "no JSON"),
    "long numbers": (header(b'{"a": {"shape": [' + b"9" * 9000 + b"]}}"), "no JSON"),
    "a list": (header([]), "expected an object"),
    "cut": (header({"a": ONE}, bytes(7)), "cut short"),
    "longer": (header({"a": ONE}, bytes(9)), "bytes follow"),
    "overlap": (header({"a": ONE, "b": ONE}, bytes(8)), "overlap"),
    "gap": (header({"a": {**ONE, "data_offsets": [4, 12]}}, bytes(12)), "gap"),
    "backwards": (header({"a": {**ONE, "data_offsets": [8, 0]}}, bytes(8)), "entry is wrong"),
    "negative": (header({"a": {**ONE, "shape": [-2]}}, bytes(8)), "entry is wrong"),
    "true": (header({"a": {**ONE, "shape": [True]}}, bytes(8)), "entry is wrong"),
    "huge": (header({"a": {**ONE, "shape": [1 << 62, 1 << 62]}}, bytes(8)), "do not fit its shape"),
    "no entry": (header({"a": 1}, bytes(8)), "entry is wrong"),
    "other types": (header({"a": {**ONE, "dtype": "I64", "shape": [1]}}, bytes(8)), "only F32, F16, BF16"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_safetensors(case: str, tmp_path: Path) -> None:
    raw, said = HOSTILE[case]
    hf = folder(tmp_path / "hf", "llama", {})
    (hf / "model.safetensors").write_bytes(raw)
    with pytest.raises(FileError, match=said):
        convert_folder(hf, tmp_path / "out.gguf")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf, out = folder(tmp_path / "hf", "gemma"), tmp_path / "out.gguf"
    out.write_text("old")
    assert main(["convert", str(hf), str(out), "--type", "Q8_0"]) == 0
    assert "weights; tensors: " in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(out)]) == 1
    assert "there is no config.json in it" in capsys.readouterr().err
    assert main(["convert", str(hf), str(out), "--type", "q4"]) == 2


# ---- tokenizers ----


def words(path: Path, size: int, arch: str = "llama", **more: Any) -> tokenizer.Tokenizer:
    """The tokenizer of a folder. `more`: other keys of config.json."""
    return tokenizer.load(vocabulary.read(path, {"vocab_size": size, **more}, arch), path)


def put(path: Path, **files: Any) -> None:
    """JSON files by their stems."""
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))


def oracle(made: dict[str, Any]) -> Any:
    """The library's tokenizer of a tokenizer.json."""
    from tokenizers import Tokenizer

    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return Tokenizer.from_str(json.dumps(made | {"added_tokens": [token | flags for token in made["added_tokens"]]}))


def test_byte_level(tmp_path: Path) -> None:
    made = bpe_json()
    put(tmp_path, tokenizer=made, tokenizer_config={"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"},
        generation_config={"eos_token_id": [263, 5], "pad_token_id": 7})  # fmt: skip
    keys = vocabulary.read(tmp_path, {"vocab_size": 268}, "gpt2")
    tok, library = words(tmp_path, 268, "gpt2"), oracle(made)
    for text in TEXTS:
        assert tok.encode(text) == library.encode(text).ids, text
        assert tok.decode(tok.encode(text)) == text
    assert (tok.eos, tok.eot, tok.pad, tok.bos, tok.add_bos) == (263, 5, 7, None, False)
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.tokens"][-4:] == ["<tool>", "[PAD265]", "[PAD266]", "[PAD267]"]
    assert keys["tokenizer.ggml.token_type"][-5:].tolist() == [3, 4, 5, 5, 5]
    assert keys["tokenizer.chat_template"] == "{{ messages }}"
    put(tmp_path, chat_template={"chat_template": "beside"})
    assert vocabulary.read(tmp_path, {"vocab_size": 268}, "gpt2")["tokenizer.chat_template"] == "{{ messages }}"
    put(tmp_path, tokenizer_config={"eos_token": "<|im_end|>"})
    assert vocabulary.read(tmp_path, {"vocab_size": 268}, "gpt2")["tokenizer.chat_template"] == "beside"
    (tmp_path / "chat_template.jinja").write_text("own")
    assert vocabulary.read(tmp_path, {"vocab_size": 268}, "gpt2")["tokenizer.chat_template"] == "own"
    with pytest.warns(UserWarning, match="1 tokens, '<tool>' first, are beyond"):
        assert words(tmp_path, 264).vocab_size == 264
    pairs = [merge.split(" ") for merge in made["model"]["merges"]]
    put(tmp_path, tokenizer=bpe_json(model=made["model"] | {"merges": pairs}))
    assert vocabulary.read(tmp_path, {"vocab_size": 268}, "gpt2")["tokenizer.ggml.merges"] == made["model"]["merges"]


def test_what_comes_around_a_text(tmp_path: Path) -> None:
    single = [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    processor = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    put(
        tmp_path,
        tokenizer=bpe_json(post_processor=processor),
        special_tokens_map={"bos_token": {"content": "<|im_end|>"}},
    )
    tok = words(tmp_path, 265)
    assert (tok.bos, tok.add_bos, tok.add_eos) == (263, True, False)
    put(tmp_path, tokenizer_config={"add_bos_token": False, "add_eos_token": True})
    tok = words(tmp_path, 265, eos_token_id=[264, 263])
    assert (tok.add_bos, tok.add_eos, tok.eos) == (True, True, 264)  # the template has a BOS, and is what is applied
    template["single"] = single[1:]
    put(tmp_path, tokenizer=bpe_json(post_processor=processor), tokenizer_config={"add_bos_token": True})
    assert words(tmp_path, 265).add_bos  # it has none, which says nothing
    put(tmp_path, tokenizer_config={})
    assert not words(tmp_path, 265).add_bos
    put(tmp_path, tokenizer_config={"add_eos_token": True})
    with pytest.raises(FileError, match="get a EOS token, and no file names it"):
        words(tmp_path, 265)


def test_vocab_and_merges_alone(tmp_path: Path) -> None:
    model = bpe_json()["model"]
    put(tmp_path, vocab=model["vocab"], tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "bos_token": "low"})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]) + "\n")
    keys = vocabulary.read(tmp_path, {"vocab_size": 263}, "opt")
    assert (keys["tokenizer.ggml.pre"], keys["tokenizer.ggml.merges"]) == ("gpt-2", model["merges"])
    bos = keys["tokenizer.ggml.bos_token_id"]
    assert keys["tokenizer.ggml.token_type"][bos] == 3
    put(tmp_path, tokenizer_config={})
    with pytest.raises(UnsupportedError, match="name it with --pre"):
        vocabulary.read(tmp_path, {"vocab_size": 263}, "opt")
    assert vocabulary.read(tmp_path, {"vocab_size": 263}, "opt", "phi-2")["tokenizer.ggml.pre"] == "phi-2"


PIECES = ["lo", "low", "er", "lower", "▁t", "▁low", "th", "▁th", "▁the", "▁▁", "on"]


def sentencepiece(path: Path, prefix: bool = True, kind: int = 2, own: tuple[str, ...] = ()) -> int:
    """Bytes, merged pieces, letters, user-defined pieces of its `own`, in a model file; how many pieces."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto()
    for i, text in enumerate(["<unk>", "<s>", "</s>"]):
        proto.pieces.add(piece=text, score=0, type=2 if i == 0 else 3)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    letters = sorted({char for text in PIECES for char in text} | set("Oncup aim".replace(" ", "▁")))
    for i, text in enumerate([*PIECES, *letters]):
        proto.pieces.add(piece=text, score=-i, type=1)
    for text in own:
        proto.pieces.add(piece=text, score=0, type=4)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = kind, True
    proto.normalizer_spec.add_dummy_prefix, proto.normalizer_spec.remove_extra_whitespaces = prefix, False
    (path / "tokenizer.model").write_bytes(proto.SerializeToString())
    return len(proto.pieces)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    size = sentencepiece(tmp_path, prefix)
    put(tmp_path, added_tokens={"<tool>": size, "two▁words": size + 2}, tokenizer_config={
        "add_bos_token": True, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            str(size + 1): {"content": "<|im_end|>", "special": True}}})  # fmt: skip
    tok = words(tmp_path, size + 4)
    library = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in TEXTS:
        if "<tool>" not in text:
            assert tok.encode(text) == [1, *library.encode(text)], text
            assert tok.decode(tok.encode(text)) == text
    assert tok.encode("<tool>two words", bos=False) == [size, size + 2]
    assert (tok.bos, tok.eos, tok.unk, tok.token("<|im_end|>")) == (1, 2, 0, size + 1)
    keys = vocabulary.read(tmp_path, {"vocab_size": size + 4}, "llama")
    assert keys["tokenizer.ggml.scores"][-3:].tolist() == [-1000, -1000, -10000]
    assert keys["tokenizer.ggml.token_type"][[0, 1, 5, -5, -4, -3, -2, -1]].tolist() == [3, 3, 6, 1, 4, 3, 4, 5]
    assert keys["tokenizer.ggml.scores"][[0, 1]].tolist() == [-1000, 0]


def test_what_a_sentencepiece_model_says_itself(tmp_path: Path) -> None:
    """Its user-defined pieces are found in a text; its special ones stay so where tokenizer.json lists them."""
    from sentencepiece import SentencePieceProcessor

    size = sentencepiece(tmp_path, prefix=False, own=("▁▁▁", "\n\n", "<a▁b>"))
    listed = [{"id": i, "content": text, "special": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    pieces = {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}
    new = [{"id": size + i, "content": text, "special": False} for i, text in enumerate(("[@BOS@]", "<2mass>", "<b>"))]
    put(tmp_path, tokenizer={"model": pieces, "added_tokens": [*listed, *new]})
    tok, library = words(tmp_path, size + 3), SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("lo   low\n\n\nlower", "      on", "a<a b> \n\n low"):
        assert tok.encode(text, bos=False) == library.encode(text)
        assert tok.decode(tok.encode(text)) == text
    keys = vocabulary.read(tmp_path, {"vocab_size": size + 3}, "llama")
    assert keys["tokenizer.ggml.tokens"][size - 3 : size] == ["   ", "\n\n", "<a b>"]
    assert keys["tokenizer.ggml.token_type"][[0, 1, 2, -6, -3, -2, -1]].tolist() == [2, 3, 3, 4, 3, 3, 4]
    assert keys["tokenizer.ggml.scores"][:3].tolist() == [0, 0, 0]
    assert keys["tokenizer.ggml.add_space_prefix"] is False
    put(tmp_path, tokenizer_config={"add_prefix_space": True})
    assert vocabulary.read(tmp_path, {"vocab_size": size + 3}, "llama")["tokenizer.ggml.add_space_prefix"]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_as_merges(prefix: bool, tmp_path: Path) -> None:
    merges = ["t h", "▁ th", "l o", "lo w", "▁ low", "e r", "▁th e", "low er", "▁low er", "▁ ▁", "o n"]
    made_of = dict.fromkeys("".join(merges).replace(" ", "") + "Oncupaim")
    tokens = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), *made_of]
    tokens += [merge.replace(" ", "") for merge in merges[::-1]]  # ids do not tell the order
    model = {"type": "BPE", "vocab": {text: i for i, text in enumerate(tokens)}, "merges": merges, "unk_token": "<unk>",
             "byte_fallback": True, "fuse_unk": True}  # fmt: skip
    steps = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    normaliser = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}] * prefix + steps}
    made = bpe_json(model=model, normalizer=normaliser, pre_tokenizer=None, decoder=None,
                    added_tokens=[{"id": 0, "content": "<unk>", "special": True},
                                  {"id": 1, "content": "<s>", "special": True}])  # fmt: skip
    put(tmp_path, tokenizer=made, tokenizer_config={"bos_token": "<s>", "add_bos_token": False})
    tok, library = words(tmp_path, len(tokens)), oracle(made)
    for text in TEXTS:
        assert tok.encode(text) == library.encode(text).ids, text
    put(tmp_path, tokenizer=made | {"normalizer": {"type": "Lowercase"}})
    with pytest.raises(UnsupportedError, match="normalisation"):
        words(tmp_path, len(tokens))


def name_of(found: Any, ignore_merges: bool, arch: str, nfc: bool = False) -> str:
    return pretokenizer.name_of(found, ignore_merges, nfc, arch, Path())


def test_pre_tokenizers_are_recognised() -> None:
    """Each row by its own cuts; other spellings of one; and what is like none."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    seen: dict[tuple[str, ...], str] = {}
    for name in ("llama-bpe", "qwen2", "gpt-2", "phi-2", "gpt-4o", "dbrx", "refact", "smollm", "smaug-bpe", "stablelm2",
                 "olmo", "tekken", "starcoder", "falcon", "deepseek-llm", "deepseek-coder", "default"):  # fmt: skip
        row = PRETOKENIZERS[name]
        splits, after = ([{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
                          for p in patterns] for patterns in (row.patterns, row.byte_patterns))  # fmt: skip
        parts = {"type": "Sequence", "pretokenizers": [*splits, level, *after]}
        found = name_of(parts, row.ignore_merges, "x", row.nfc)
        assert PRETOKENIZERS[found] == row or (PRETOKENIZERS[found].patterns, found) == (row.patterns, "llama-bpe")
        seen[row.patterns] = name
    assert len(seen) == 10
    digits = {"type": "Digits", "individual_digits": True}
    plain = level | {"use_regex": True}
    assert name_of({"type": "Sequence", "pretokenizers": [digits, plain]}, False, "granite") == "refact"
    assert name_of(plain, False, "llama", nfc=True) in ("mpt", "olmo")
    tekken = [{"type": "Split", "pattern": {"Regex": PRETOKENIZERS["tekken"].patterns[0]}, "behavior": "Isolated",
               "invert": False}, level]  # fmt: skip
    with pytest.warns(UserWarning, match="brings text to NFC, which no"):
        assert name_of({"type": "Sequence", "pretokenizers": tekken}, True, "llama", nfc=True) == "tekken"
    for strange in ({"type": "Whitespace"}, plain | {"add_prefix_space": True}, None):
        with pytest.raises(UnsupportedError, match="--pre"):
            name_of(strange, False, "llama")
    with pytest.raises(UnsupportedError, match=r"this flag.*ignore_merges"):
        name_of(plain, True, "llama")
    with pytest.raises(FileError, match="no pre-tokenizer"):
        name_of({"type": "Mine"}, False, "llama")


def test_tokenizers_that_are_not_understood(tmp_path: Path) -> None:
    def refused(match: str, **files: Any) -> None:
        put(tmp_path, **files)
        with pytest.raises(FileError, match=match):
            words(tmp_path, 300)

    refused("there is no tokenizer: neither")
    refused("this kind of tokenizer.*Unigram", tokenizer={"model": {"type": "Unigram"}})
    refused("two tokens have the same id", tokenizer=bpe_json(model={"type": "BPE", "vocab": {"a": 0, "b": 0}}))
    refused("merges are wrong", tokenizer=bpe_json(model=small_json()["model"] | {"merges": [1]}))
    refused("added token is wrong", tokenizer=bpe_json(added_tokens=[{"id": -1, "content": "x"}]))
    refused("this kind", tokenizer={"model": 3})
    fallback = small_json()["model"] | {"byte_fallback": True}
    refused("cannot be understood", tokenizer=bpe_json(model=fallback, pre_tokenizer=[1]))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xff")
    refused("no SentencePiece model")
    sentencepiece(tmp_path, kind=1)
    refused("this kind of SentencePiece model")
