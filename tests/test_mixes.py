"""Which types the tensors of a model get: llama.cpp's rules."""

from __future__ import annotations

import gguf as ggml
import pytest

from tinyslm import mixes
from tinyslm.formats import TYPE_IDS, TYPES
from tinyslm.mixes import MIXES
from tinyslm.quantise.rows import SEARCHED


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
