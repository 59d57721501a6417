"""Quantising: how well, to the same bits everywhere, into which types, and what is left when it goes wrong."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf as ggml
import ggufs
import numpy as np
import pytest
from gguf import quants
from small import ROOT, tiny_file

from tinyslm import gguf, mixes, shapes
from tinyslm.backends import has_native
from tinyslm.errors import BackendError, FileError, OptionError
from tinyslm.formats import BY_NAME, TYPE_IDS, TYPES
from tinyslm.gguf import GGUF, TensorData
from tinyslm.mixes import MIXES
from tinyslm.quantise import quantise_file, read_importance, rows
from tinyslm.quantise.collect import collect_importance
from tinyslm.quantise.rows import SEARCHED, quantise_rows

NATIVE = pytest.mark.skipif(not has_native(), reason="the C core was not built")
STORIES = ggufs.SHARED / "stories260K" / "stories260K-f32.gguf"
# What ggml's own quantiser leaves (version 0.25) of the rows below: root mean square of the error, of that of the row.
GGML = {
    "Q4_0": (0.08602, 0.11654), "Q4_1": (0.07829, 0.09431), "Q5_0": (0.04282, 0.05844), "Q5_1": (0.03798, 0.04542),
    "Q2_K": (0.29697, 0.34698), "Q3_K": (0.15092, 0.18456), "Q4_K": (0.07155, 0.08727), "Q5_K": (0.03626, 0.04400),
    "Q6_K": (0.01775, 0.02304), "IQ4_NL": (0.07621, 0.09412), "IQ4_XS": (0.07679, 0.09512),
    "TQ1_0": (0.80849, 0.84240), "TQ2_0": (0.80849, 0.84240), "MXFP4": (0.11513, 0.13150),
    "NVFP4": (0.09514, 0.09181), "Q1_0": (0.60056, 0.70605), "Q2_0": (0.71874, 0.73038),
}  # fmt: skip


def gaussian() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32)


def heavy_tailed() -> np.ndarray:
    rng = np.random.default_rng(0)
    rng.standard_normal((64, 2048))
    return rng.standard_t(4, (64, 2048)).astype(np.float32)


def back(kind: str, blocks: np.ndarray) -> np.ndarray:
    """By the reference implementation, so that what holds here holds in llama.cpp; by ours where it has none."""
    if kind in ("Q1_0", "Q2_0"):
        return BY_NAME[kind].dequantise(blocks)
    return quants.dequantize(blocks, ggml.GGMLQuantizationType[kind])


def error(
    kind: str, values: np.ndarray, weights: np.ndarray | float = 1, importance: np.ndarray | None = None
) -> float:
    away = (back(kind, quantise_rows(kind, values, importance)).astype(np.float64) - values) ** 2
    return float(np.sqrt((weights * away).mean() / (weights * values.astype(np.float64) ** 2).mean()))


# ---- rows ----


@NATIVE
@pytest.mark.parametrize("kind", SEARCHED)
def test_the_error_is_no_larger_than_that_of_ggml(kind: str) -> None:
    assert error(kind, gaussian()) <= GGML[kind][0]
    assert error(kind, heavy_tailed()) <= GGML[kind][1]


@NATIVE
@pytest.mark.parametrize("kind", SEARCHED)
def test_the_bits_do_not_depend_on_the_machine_or_the_slice(kind: str) -> None:
    k = 256 + TYPES[TYPE_IDS[kind]].block % 256  # a span of 256, and one of a block
    values = gaussian().reshape(-1)[: 12 * k].reshape(12, k)
    importance = np.abs(heavy_tailed().reshape(-1)[:k])
    for weights in (None, importance):
        whole = quantise_rows(kind, values, weights)
        np.testing.assert_array_equal(whole, quantise_rows(kind, values, weights, isa="scalar"))
        np.testing.assert_array_equal(whole[5:7], quantise_rows(kind, values[5:7], weights))


@NATIVE
@pytest.mark.parametrize("kind", [kind for kind in SEARCHED if kind not in ("TQ1_0", "TQ2_0", "MXFP4", "Q1_0")])
def test_columns_that_matter_more_are_held_better(kind: str) -> None:
    importance = np.random.default_rng(1).lognormal(0, 1.5, 2048).astype(np.float32)
    assert error(kind, gaussian(), importance, importance) < 0.99 * error(kind, gaussian(), importance)


@NATIVE
@pytest.mark.parametrize("kind", [kind for kind in SEARCHED if kind != "Q1_0"])
def test_odd_rows(kind: str) -> None:
    block = TYPES[TYPE_IDS[kind]].block
    step = np.resize(np.array([0, 0.5, -0.5], np.float32), block)
    odd = np.stack([np.zeros(block), np.full(block, 3.0), np.full(block, -3.0), np.full(block, 1e-30), step,
                    np.eye(1, block, 7)[0] * 100]).astype(np.float32)  # fmt: skip
    values = back(kind, quantise_rows(kind, odd))
    assert not values[0].any()
    coarse = 0.34 if kind == "MXFP4" else 0.01  # of four bits with a power of two as their scale, 3 is half way
    np.testing.assert_allclose(values[1], 3, rtol=coarse)
    np.testing.assert_allclose(values[2], -3, rtol=coarse)
    assert np.abs(values[3]).max() < 1e-6
    np.testing.assert_allclose(values[4], step, atol=0.05 if kind.startswith("IQ4") else 0.02)
    assert np.abs(values[5] - odd[5]).max() < 7


@NATIVE
def test_ternary_weights_are_held_as_they_are() -> None:
    values = np.random.default_rng(0).integers(-1, 2, (8, 512)).astype(np.float32) * 0.375
    for kind in ("TQ1_0", "TQ2_0", "Q2_0"):
        np.testing.assert_array_equal(back(kind, quantise_rows(kind, values)), values)


@NATIVE
def test_signs_are_held_under_the_mean_magnitude() -> None:
    rows = np.resize(np.array([1, -3, 2, -6], np.float32), (4, 256))
    rows[1] = np.where(rows[0] < 0, -0.5, 0.5)
    rows[2], rows[3, :128] = 1e-30, 0
    found = back("Q1_0", quantise_rows("Q1_0", rows))
    np.testing.assert_array_equal(found[0], np.sign(rows[0]) * 3)
    np.testing.assert_array_equal(found[1], rows[1])
    assert not found[2].any()
    np.testing.assert_array_equal(found[3], np.where(np.arange(256) < 128, 0, np.sign(rows[3]) * 3))
    importance = np.resize(np.array([1, 0], np.float32), 256)  # of what counts, all have one magnitude
    even = np.resize(np.array([2, 7], np.float32), (1, 256))
    np.testing.assert_array_equal(back("Q1_0", quantise_rows("Q1_0", even, importance)), np.full((1, 256), 2))


@NATIVE
def test_two_bits_lean_to_either_side() -> None:
    """Codes are -1, 0, 1 and 2 times a scale, which may be negative."""
    values = np.random.default_rng(0).integers(-1, 3, (8, 192)).astype(np.float32) * 0.75
    for wanted in (values, -values):
        np.testing.assert_array_equal(back("Q2_0", quantise_rows("Q2_0", wanted)), wanted)
    assert error("Q2_0", gaussian()) < 0.353  # 0.356 where the farthest weight is always on the long side


BYTES = np.arange(1, 127)
# The scales of NVFP4: floats of 4 bits of exponent and 3 of fraction, halved.
SCALES = np.where(BYTES < 8, BYTES, (8 + BYTES % 8) * 2.0 ** (BYTES // 8 - 1)) * 2.0**-10


@NATIVE
def test_every_small_float_is_a_scale() -> None:
    """NVFP4: 16 weights that are multiples of a scale come back, for each scale that there is, denormal or largest."""
    codes = np.array([0, 1, 2, 3, 4, 6, 8, 12, -1, -2, -3, -4, -6, -8, -12, 0])
    rows = np.tile((SCALES[:, None] * codes).astype(np.float32), 4)
    np.testing.assert_array_equal(back("NVFP4", quantise_rows("NVFP4", rows)), rows)
    for largest, held in ((2688.0, True), (2689.0, False)):
        rows = np.full((1, 64), largest, np.float32)
        if held:
            np.testing.assert_array_equal(back("NVFP4", quantise_rows("NVFP4", rows)), rows)
        else:
            with pytest.raises(OptionError, match="too large for NVFP4"):
                quantise_rows("NVFP4", rows)


@NATIVE
def test_the_best_small_float_is_found() -> None:
    """NVFP4: the error is that of trying every scale there is for every 16 weights."""
    values = np.concatenate([gaussian()[:, :64] * size for size in (0.003, 0.02, 1, 300)])
    codes = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
    least = np.full(values.size // 16, np.inf)
    sizes = np.abs(values.reshape(-1, 16))
    for scale in SCALES:
        held = codes[np.searchsorted((codes[1:] + codes[:-1]) / 2, sizes / scale)] * scale
        least = np.minimum(least, ((sizes - held) ** 2).sum(1))
    found = ((back("NVFP4", quantise_rows("NVFP4", values)) - values) ** 2).reshape(-1, 16).sum(1)
    assert found.sum() <= least.sum() * 1.0001


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", *(SEARCHED if has_native() else ())])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_a_type_cannot_hold_is_refused(kind: str, bad: float) -> None:
    values = np.ones((2, 256), np.float32)
    values[1, 77] = bad
    if bad == 1e30 and kind in ("F32", "BF16", "MXFP4"):
        quantise_rows(kind, values)
    else:
        with pytest.raises(OptionError, match=f"no finite number, or too large for {kind}"):
            quantise_rows(kind, values)


def test_wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="Q4_K is made of float32 rows of a multiple of 256 weights"):
        quantise_rows("Q4_K", np.zeros((2, 288), np.float32))
    with pytest.raises(OptionError, match="not of float64"):
        quantise_rows("F16", np.zeros((2, 288)))
    monkeypatch.setattr(rows, "has_native", lambda: False)
    with pytest.raises(BackendError, match="quantising to Q4_0 needs the C core"):
        quantise_rows("Q4_0", np.zeros((2, 32), np.float32))


# ---- types ----


def test_every_type_of_a_mix_can_be_made() -> None:
    model = mixes.Model.of([f"blk.{i}.{m}.weight" for i in range(16) for m in ("attn_v", "ffn_down")], 16, 4)
    names = ["token_embd", "blk.0.attn_q", "blk.0.attn_output", *(f"blk.{i}.ffn_down" for i in range(16))]
    for mix in MIXES:
        for k in (256, 288, 300, 320):
            found = {mixes.type_of(f"{name}.weight", (k, 64), mix, model) for name in names}
            assert found <= {"F32", "F16", "BF16", "Q8_0", *SEARCHED}
            assert all(k % TYPES[TYPE_IDS[kind]].block == 0 for kind in found)


# Of a model of 17 layers, four heads to a key/value head, tied: what llama.cpp's quantiser gives (layers 0 … 16).
LLAMA_CPP = {
    ("Q4_K_M", "attn_v"): "6646446446446446666", ("Q4_K_S", "attn_v"): "55554444444444444",
    ("Q3_K_M", "attn_v"): "55444444444444444", ("Q2_K", "attn_v"): "44444444444444444",
    ("IQ4_XS", "attn_v"): "55555555555555555", ("Q4_K_M", "ffn_down"): "6646446446446446666",
    ("Q3_K_M", "ffn_down"): "54444444444444444", ("Q2_K", "ffn_down"): "33333333333333333",
    ("Q2_K_S", "ffn_down"): "44222222222222222", ("Q4_K_S", "ffn_down"): "55444444444444444",
    ("Q2_K", "attn_output"): "33333333333333333", ("Q3_K_L", "attn_output"): "55555555555555555",
}  # fmt: skip


@pytest.mark.parametrize(("mix", "matrix"), LLAMA_CPP)
def test_layers_get_the_bits_that_llama_cpp_gives_them(mix: str, matrix: str) -> None:
    layers = tuple(range(17))
    model = mixes.Model(17, 4, 0, True, layers, layers)
    found = [mixes.type_of(f"blk.{i}.{matrix}.weight", (256, 64), mix, model) for i in layers]
    more = {i: "6" if i < 2 or i >= 14 or (i - 2) % 3 == 2 else "4" for i in layers}
    wanted = "".join(more.values()) if mix == "Q4_K_M" else LLAMA_CPP[mix, matrix]
    assert "".join(kind.removeprefix("I")[1] for kind in found) == wanted


def test_what_stays_and_what_importance_changes() -> None:
    assert mixes.kept("blk.0.attn_norm.weight", (64, 64))
    assert mixes.kept("output_norm.weight", (64,))
    assert mixes.kept("blk.0.attn_q.bias", (64, 2))
    assert mixes.kept("blk.3.ffn_gate_inp.weight", (64, 8))
    assert mixes.kept("blk.3.ssm_conv1d.weight", (4, 64))
    assert not mixes.kept("blk.0.attn_q.weight", (64, 64))
    layers = tuple(range(16))
    model = mixes.Model(16, 1, 0, False, layers, layers)
    first = "blk.0.ffn_down.weight", (256, 64)
    assert [mixes.type_of(*first, "Q4_0", model, importance) for importance in (False, True)] == ["Q4_0", "Q4_1"]
    assert [mixes.type_of(*first, "IQ4_XS", model, importance) for importance in (False, True)] == ["Q5_K", "IQ4_XS"]
    experts = model._replace(experts=8)
    assert mixes.type_of("blk.9.attn_k.weight", (256, 64), "Q4_K_M", experts) == "Q8_0"
    assert mixes.type_of("blk.9.ffn_up_exps.weight", (256, 64, 8), "MXFP4_MOE", experts) == "MXFP4"
    assert mixes.type_of("blk.9.attn_q.weight", (256, 64), "MXFP4_MOE", experts) == "Q8_0"


# By the length of rows: token_embd.weight, output.weight and others. None: llama.cpp has no such mix, or no fall-back.
FEW_BITS = {
    ("Q2_0", 512): ("Q4_K", "Q6_K", "Q2_0"), ("Q2_0", 320): ("Q5_0", "Q8_0", "Q2_0"),
    ("Q2_0", 480): ("Q5_0", "Q8_0", "Q4_0"), ("Q1_0", 512): ("Q1_0", "Q6_K", "Q1_0"),
    ("Q1_0", 320): ("Q4_0", "Q8_0", "Q4_0"), ("NVFP4", 512): ("NVFP4", "Q6_K", "NVFP4"),
    ("NVFP4", 480): ("IQ4_NL", "Q8_0", "IQ4_NL"),
}  # fmt: skip


@pytest.mark.parametrize(("mix", "k"), FEW_BITS)
def test_types_of_mixes_of_few_bits(mix: str, k: int) -> None:
    model = mixes.Model(1, 1, 0, False, (0,), (0,))
    names = ("token_embd.weight", "output.weight", "blk.0.attn_q.weight")
    assert tuple(mixes.type_of(name, (k, 64), mix, model) for name in names) == FEW_BITS[mix, k]


def test_numbers_of_file_types() -> None:
    """llama.cpp's `llama_ftype`; those that the gguf package knows are looked up there."""
    named = {name.removeprefix("MOSTLY_"): int(value) for name, value in ggml.LlamaFileType.__members__.items()}
    named |= {"F32": 0, "Q2_0": 41, "MXFP4": 38}
    assert {mix: MIXES[mix].file_type for mix in MIXES} == {mix: named[mix] for mix in MIXES}


# ---- files ----


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_file(tmp_path_factory.mktemp("quantise"), kind="F16")


@NATIVE
def test_a_file(source: Path, tmp_path: Path) -> None:
    out, shown = tmp_path / "out.gguf", list[float]()
    with GGUF.open(source) as file:
        more = {**file.metadata, "general.file_type": np.uint32(1), "x.last": "é", "split.count": np.uint16(1)}
        kinds = {**file.metadata_types, "split.count": gguf.ValueType.UINT16}
        tensors = [TensorData(t.name, t.shape, t.type, file.read(t)) for t in file.tensors.values()]
    more["general.alignment"] = 128
    extra = TensorData("blk.0.rope_freqs", (3,), TYPE_IDS["I32"], np.array([1, -2, 3], np.int32))
    gguf.write(tmp_path / "in.gguf", more, [extra, *tensors], types=kinds)
    result = quantise_file(tmp_path / "in.gguf", out, "Q4_K_M", threads=2, progress=shown.append)
    assert shown == sorted(shown)
    assert shown[-1] == 1
    with GGUF.open(tmp_path / "in.gguf") as old, GGUF.open(out) as new:
        assert [k for k in old.metadata if k != "split.count"] == list(new.metadata)[:-1]
        assert new.metadata["general.file_type"] == 15
        assert new.metadata["general.quantization_version"] == 2
        assert new.alignment == 128
        changed = ("general.file_type", "general.quantization_version")
        for key in [key for key in new.metadata if key not in changed]:
            assert new.metadata_types[key] == old.metadata_types[key]
            np.testing.assert_array_equal(new.metadata[key], old.metadata[key])
        assert list(new.tensors) == list(old.tensors)
        assert result.after == sum(t.nbytes for t in new.tensors.values())
        assert result.before == sum(t.nbytes for t in old.tensors.values())
        for name, t in new.tensors.items():
            if t.type == old.tensors[name].type:
                np.testing.assert_array_equal(new.read(t), old.read(old.tensors[name]))
            else:  # rows of 64 and 96
                more = name == "output.weight" or (
                    name.startswith("blk.1.") and ("attn_v" in name or "ffn_down" in name)
                )
                assert t.type_name == ("Q8_0" if more else "Q5_0")
                values = old.tensors[name].format.dequantise(old.read(old.tensors[name]))
                np.testing.assert_array_equal(new.read(t), quantise_rows(t.type_name, values))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


@NATIVE
def test_the_file_does_not_depend_on_threads_or_slices(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantise_file(source, tmp_path / "a.gguf", "Q4_0", threads=1)
    monkeypatch.setattr("tinyslm.quantise.file.SLICE", 1000)
    quantise_file(source, tmp_path / "b.gguf", "Q4_0", threads=3)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@NATIVE
def test_refused_files(source: Path, tmp_path: Path) -> None:
    def refused(wanted: str, *args: object, kind: type[Exception] = OptionError, **more: object) -> None:
        before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        with pytest.raises(kind, match=wanted):
            quantise_file(*args, **more)  # type: ignore[arg-type]
        assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before

    own = tmp_path / "own.gguf"
    own.write_bytes(source.read_bytes())
    (tmp_path / "link.gguf").symlink_to(own)
    os.link(own, tmp_path / "hard.gguf")
    out = tmp_path / "out.gguf"
    for name in ("own", "link", "hard"):
        refused("is the file that is read", own, tmp_path / f"{name}.gguf", "Q4_0")
    refused("there is no type 'Q9'", own, out, "Q9")
    refused("this is a directory", own, tmp_path, "Q4_0", kind=FileError)
    refused("its folder does not exist", own, tmp_path / "none" / "x", "Q4_0", kind=FileError)
    quantise_file(own, tmp_path / "q8.gguf", "Q8_0")
    refused("quantised already .Q8_0.*or --requantize", tmp_path / "q8.gguf", out, "Q4_0")
    assert quantise_file(tmp_path / "q8.gguf", out, "Q4_0", requantise=True).types["Q4_0"] == 15
    quantise_file(tmp_path / "q8.gguf", out, "Q8_0")  # nothing is quantised once more
    assert out.read_bytes() == (tmp_path / "q8.gguf").read_bytes()
    gguf.write(tmp_path / "words.gguf", {"general.architecture": "llama"}, [])
    refused("no weights: it is a vocabulary", tmp_path / "words.gguf", out, "Q4_0", kind=FileError)
    nan = TensorData("blk.0.attn_q.weight", (32, 2), 0, np.full(64, np.nan, np.float32))
    gguf.write(tmp_path / "nan.gguf", {"general.architecture": "llama"}, [nan])
    refused(
        "no finite number, or too large for Q4_0 .'blk.0.attn_q.w", tmp_path / "nan.gguf", out, "Q4_0", kind=FileError
    )


@NATIVE
def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("tinyslm.quantise.file.shutil.disk_usage", lambda _: type("usage", (), {"free": 100}))
        with pytest.raises(FileError, match="the disk has no room"):
            quantise_file(source, tmp_path / "out.gguf", "Q4_0")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinyslm.gguf_writer.os.fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        quantise_file(source, tmp_path / "out.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == []


# ---- importance ----


def old_matrix(path: Path, entries: dict[str, np.ndarray], calls: int) -> Path:
    data = struct.pack("<i", len(entries))
    for name, values in entries.items():
        data += struct.pack(f"<i{len(name)}sii", len(name), name.encode(), calls, values.size)
        data += (values * calls).astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", calls, 4) + b"text")
    return path


def new_matrix(path: Path, name: str, sums: np.ndarray, counts: list[float]) -> Path:
    tensors = [TensorData(f"{name}.in_sum2", sums.shape[::-1], 0, sums.astype(np.float32)),
               TensorData(f"{name}.counts", (1, len(counts)), 0, np.array(counts, np.float32))]  # fmt: skip
    gguf.write(path, {"general.type": "imatrix", "imatrix.chunk_count": 7, "imatrix.datasets": ["a.txt"]}, tensors)
    return path


@NATIVE
def test_importance_of_either_kind(source: Path, tmp_path: Path) -> None:
    name, squares = "blk.0.attn_q.weight", np.random.default_rng(0).lognormal(0, 2, 64).astype(np.float32)
    squares[5] = 0
    old = read_importance(old_matrix(tmp_path / "old.dat", {name: squares}, 4))
    new = read_importance(new_matrix(tmp_path / "new.gguf", name, squares[None] * 512, [512]))
    for found in (old, new):
        np.testing.assert_allclose(found.squares[name], np.maximum(squares, squares.mean() * 1e-6)[None], rtol=1e-6)
    assert (old.chunks, new.chunks, new.datasets) == (4, 7, ("a.txt",))
    with pytest.warns(UserWarning, match="13 matrices are missing, blk.0.attn_k.weight first"):
        quantise_file(source, tmp_path / "out.gguf", "Q4_0", importance=new)
    with GGUF.open(source) as before, GGUF.open(tmp_path / "out.gguf") as after:
        assert after.metadata["quantize.imatrix.dataset"] == "a.txt"
        assert after.metadata["quantize.imatrix.entries_count"] == 1
        t = before.tensors[name]
        wanted = quantise_rows("Q4_0", t.format.dequantise(before.read(t)), new.squares[name][0])
        np.testing.assert_array_equal(after.read(after.tensors[name]), wanted)


def test_each_expert_has_its_own_importance(tmp_path: Path) -> None:
    sums = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    found = read_importance(new_matrix(tmp_path / "m.gguf", "t", sums, [1, 0, 2])).squares["t"]
    np.testing.assert_allclose(found, [sums[0], np.ones(4), sums[2] / 2])


def test_broken_importance(source: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_importance(tmp_path / "none")
    bad = new_matrix(tmp_path / "bad.gguf", name, np.array([[1.0, np.nan]]), [1])
    with pytest.raises(FileError, match="no finite number, or negative"):
        read_importance(bad)
    with pytest.raises(FileError, match="no tensor's name ends in"):
        read_importance(source)
    with pytest.raises(FileError, match=r"no importance matrix: it has no entries"):
        read_importance(old_matrix(tmp_path / "empty.dat", {}, 1))
    whole = old_matrix(tmp_path / "old.dat", {name: np.ones(64)}, 1).read_bytes()
    for size in (0, 3, 20, 100, len(whole) - 20):
        (tmp_path / "cut.dat").write_bytes(whole[:size])
        with pytest.raises(FileError, match="no importance matrix"):
            read_importance(tmp_path / "cut.dat")
    for other, k in (("blk.0.attn_q.weight", 32), ("other", 64)):
        found = read_importance(new_matrix(tmp_path / "other.gguf", other, np.ones((1, k)), [1]))
        with pytest.raises(FileError, match="the importance matrix is of another model"):
            quantise_file(source, tmp_path / "out.gguf", "Q4_0", importance=found)


# ---- the command line ----

TINYSLM = [sys.executable, "-m", "tinyslm"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def call(*args: object) -> tuple[int, str]:
    done = subprocess.run([*TINYSLM, *map(str, args)], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


@NATIVE
def test_the_verbs(source: Path, tmp_path: Path) -> None:
    text, matrix, out = tmp_path / "text.txt", tmp_path / "m.gguf", tmp_path / "out.gguf"
    text.write_text("abc " * 100)
    code, said = call("imatrix", "-m", source, "-f", text, "-o", matrix, "-c", 64, "--chunks", 3)
    assert (code, said.count("\n")) == (0, 1)
    assert "over 3 chunks of 64 tokens" in said
    code, said = call("quantize", source, out, "q4_k", "--imatrix", matrix)
    assert (code, said.count("\n")) == (0, 1)
    assert "bits a weight; tensors: Q5_0 13, F32 5, Q8_0 3\n" in said
    with GGUF.open(out) as file:
        assert file.metadata["general.file_type"] == 15
        assert file.metadata["quantize.imatrix.chunks_count"] == 3
    before = sorted(tmp_path.iterdir())
    for wanted, code, *args in (
        ("there is no type 'Q4_KM'; did you mean Q4_K_M? there are F32, F16, ", 2, source, out, "Q4_KM"),
        ("no such file", 1, tmp_path / "none.gguf", out, "Q4_0"),
        ("is the file that is read", 1, source, source, "Q4_0"),
    ):
        got, said = call("quantize", *args)
        assert (got, said.count("\n")) == (code, 1)
        assert wanted in said
    assert sorted(tmp_path.iterdir()) == before


@NATIVE
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    shapes.make(tmp_path / "in.gguf", shapes.Shape(4, 512, 8, 8, 2048, 4000, 1 << 10, True), "F16")
    command = [*TINYSLM, "quantize", tmp_path / "in.gguf", tmp_path / "out" / "q.gguf", "Q2_K", "-t", "1"]
    (tmp_path / "out").mkdir()
    slow = {**ENVIRONMENT, "TINYSLM_ISA": "scalar"}
    process = subprocess.Popen([*map(str, command)], env=slow, stderr=subprocess.PIPE)
    while not list((tmp_path / "out").iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, b"")
    assert list((tmp_path / "out").iterdir()) == []


@NATIVE
@pytest.mark.skipif(not STORIES.is_file(), reason="the real model is not here")
def test_sums_are_those_of_the_reference_backend(tmp_path: Path) -> None:
    from tinyslm import models
    from tinyslm.backends import reference
    from tinyslm.backends.base import Weights
    from tinyslm.config import Keys
    from tinyslm.engine import Engine, Work
    from tinyslm.kvcache import Sequence
    from tinyslm.model import file_tensors
    from tinyslm.tokenizer import load

    text = "Once upon a time there was a little girl. " * 8
    assert collect_importance(STORIES, text, tmp_path / "m.gguf", context=70, threads=2) == 1
    with GGUF.open(STORIES) as file:
        program = models.build(Keys(STORIES, file.metadata), file_tensors(file))
        ids = np.array(load(file.metadata, STORIES).encode(text)[:70], np.int32)
        backend = reference.Reference(program, Weights(file))
    seen: dict[str, np.ndarray] = {}
    run = backend._run

    def watched(op, inputs, batch):  # type: ignore[no-untyped-def]
        if op.kind == "matmul" and op.weight.name.startswith("blk."):
            seen[op.weight.name] = np.square(inputs[0], dtype=np.float64).sum(axis=0)
        return run(op, inputs, batch)

    backend._run = watched  # type: ignore[method-assign]
    logits = np.empty((70, program.vocab), np.float32)
    Engine(program, backend).step([Work(Sequence(), ids, 70)], logits)
    with GGUF.open(tmp_path / "m.gguf") as file:
        assert file.metadata["general.type"] == "imatrix"
        assert (file.metadata["imatrix.chunk_count"], file.metadata["imatrix.chunk_size"]) == (1, 70)
        assert list(file.tensors) == [f"{name}{end}" for name in sorted(seen) for end in (".in_sum2", ".counts")]
        for name, sums in seen.items():
            t = file.tensors[f"{name}.in_sum2"]
            np.testing.assert_allclose(t.format.dequantise(file.read(t))[0], sums, rtol=1e-4, atol=1e-6)
            assert file.read(file.tensors[f"{name}.counts"]).view(np.float32) == 70
    with pytest.raises(OptionError, match="the text has 3 tokens, a chunk needs 70"):
        collect_importance(STORIES, "one", tmp_path / "m.gguf", context=70)
    with pytest.raises(OptionError, match="can have up to 512"):
        collect_importance(STORIES, "one", tmp_path / "m.gguf", context=600)
