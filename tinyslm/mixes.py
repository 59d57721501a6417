"""What a file type's name means: which tensor type each tensor of a model gets.

The rules are those of llama.cpp's quantiser (`llama-quant.cpp`), so that a file here and one there hold the same types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from tinyslm.formats import TYPE_IDS, TYPES


class Mix(NamedTuple):
    """`file_type`: its number in general.file_type (llama.cpp's `llama_ftype`); `main`: the type of most matrices."""

    file_type: int
    main: str


MIXES: dict[str, Mix] = {
    "F32": Mix(0, "F32"), "F16": Mix(1, "F16"), "BF16": Mix(32, "BF16"), "Q8_0": Mix(7, "Q8_0"),
    "Q6_K": Mix(18, "Q6_K"), "Q5_K_M": Mix(17, "Q5_K"), "Q5_K_S": Mix(16, "Q5_K"), "Q5_1": Mix(9, "Q5_1"),
    "Q5_0": Mix(8, "Q5_0"), "Q4_K_M": Mix(15, "Q4_K"), "Q4_K_S": Mix(14, "Q4_K"), "Q4_1": Mix(3, "Q4_1"),
    "Q4_0": Mix(2, "Q4_0"), "IQ4_NL": Mix(25, "IQ4_NL"), "IQ4_XS": Mix(30, "IQ4_XS"), "MXFP4": Mix(38, "MXFP4"),
    "MXFP4_MOE": Mix(38, "MXFP4"), "Q3_K_L": Mix(13, "Q3_K"), "Q3_K_M": Mix(12, "Q3_K"), "Q3_K_S": Mix(11, "Q3_K"),
    "Q2_K": Mix(10, "Q2_K"), "Q2_K_S": Mix(21, "Q2_K"), "TQ2_0": Mix(37, "TQ2_0"), "TQ1_0": Mix(36, "TQ1_0"),
    "NVFP4": Mix(39, "NVFP4"), "Q1_0": Mix(40, "Q1_0"), "Q2_0": Mix(41, "Q2_0"),
}  # fmt: skip
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}
# What a row is held in whose length the type's block does not divide; F16 where that one's does not either.
FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
    "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q1_0": "Q4_0", "Q2_0": "Q4_0", "NVFP4": "IQ4_NL",
}  # fmt: skip
# Parts of names: matrices that are small, or that a few bits would ruin.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "time_mix_first.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight",
    "position_embd", "token_types", ".rel_pos", ".patch_embd", ".patch_merger",
)  # fmt: skip
_TIME_MIX = re.compile(r"time_mix_(w[012]|v[012]|a[012]|g[12]|decay_w[12])\.weight")
_LAYER = re.compile(r"blk\.(\d+)\.")
_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")


class Model(NamedTuple):
    """What of a model the rules look at. `values`, `downs`: the layers that have such a matrix, ascending."""

    layers: int
    group: int
    """Heads to a key/value head."""
    experts: int
    tied: bool
    values: tuple[int, ...]
    downs: tuple[int, ...]

    @classmethod
    def of(cls, names: Iterable[str], layers: int, group: int, experts: int = 0) -> Model:
        listed = list(names)

        def having(parts: tuple[str, ...]) -> tuple[int, ...]:
            return tuple(sorted({_layer(name) for name in listed if any(part in name for part in parts)}))

        return cls(layers, group, experts, "output.weight" not in listed, having(_VALUES), having(("ffn_down",)))


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else 0


def kept(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor stays as it is in every mix: vectors, norms, some small matrices; `shape` in ggml's order."""
    dimensions = max((i + 1 for i, side in enumerate(shape) if side > 1), default=1)
    return (
        dimensions < 2
        or not name.endswith("weight")
        or any(part in name for part in _KEPT)
        or bool(_TIME_MIX.search(name))
    )


def type_of(name: str, shape: tuple[int, ...], mix: str, model: Model, importance: bool = False) -> str:
    """The type that a mix, a key of MIXES, gives a tensor that is not kept. `importance`: a matrix of it is at hand."""
    main = MIXES[mix].main
    if main in ("F32", "F16", "BF16"):
        return main
    found, k = _wanted(name, shape, mix, main, model, importance), shape[0]
    if k % TYPES[TYPE_IDS[found]].block:
        found = FALLBACK.get(found, "F16")
    return found if k % TYPES[TYPE_IDS[found]].block == 0 else "F16"


def _wanted(name: str, shape: tuple[int, ...], mix: str, main: str, model: Model, importance: bool) -> str:
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        whole = shape[0] % TYPES[TYPE_IDS[main]].block == 0
        return "Q6_K" if whole and main != "Q8_0" and mix != "MXFP4_MOE" else "Q8_0"
    if mix == "MXFP4_MOE":
        return "MXFP4" if len(shape) > 2 and shape[2] > 1 else "Q8_0"
    if name == "token_embd.weight":
        return "Q4_K" if mix in ("TQ1_0", "TQ2_0", "Q2_0") else main
    if any(part in name for part in _VALUES):
        return _values(mix, main, model, model.values.index(_layer(name)))
    if "attn_k.weight" in name and model.experts == 8:
        return "Q8_0"
    if "ffn_down" in name:
        i = _layer(name) if model.experts > 1 else model.downs.index(_layer(name))
        return _down(mix, main, i, model.layers, importance)
    if "attn_output.weight" in name:
        return _output(mix, main, model)
    return main


def _more(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _values(mix: str, main: str, model: Model, i: int) -> str:
    if model.experts == 8:
        return "Q8_0"
    found, wide = main, model.group >= 4
    if mix == "Q2_K":
        found = "Q4_K" if wide else "Q3_K"
    elif mix == "Q2_K_S" and wide:
        found = "Q4_K"
    elif mix == "Q3_K_M":
        found = "Q5_K" if i < 2 else "Q4_K"
    elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and wide) or (mix == "Q4_K_S" and i < 4):
        found = "Q5_K"
    elif mix in ("Q4_K_M", "Q5_K_M") and _more(i, len(model.values)):
        found = "Q6_K"
    # Of Llama 2 70B and its like: the matrix is small, so that more bits for it cost little.
    return "Q5_K" if model.layers == 80 and model.group > 1 and found in ("Q3_K", "Q4_K") else found


def _down(mix: str, main: str, i: int, n: int, importance: bool) -> str:
    first = i < n // 8
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q2_K_S" and first:
        return "Q4_K"
    if mix == "Q3_K_M":
        return "Q5_K" if i < n // 16 else "Q4_K"
    if mix == "Q3_K_L" or (first and (mix == "Q4_K_S" or (mix in ("IQ4_NL", "IQ4_XS") and not importance))):
        return "Q5_K"
    if mix in ("Q4_K_M", "Q5_K_M") and _more(i, n):
        return "Q6_K"
    if mix in ("Q4_0", "Q5_0") and importance and first:
        return "Q4_1" if mix == "Q4_0" else "Q5_1"
    return main


def _output(mix: str, main: str, model: Model) -> str:
    if model.experts == 8:
        return "Q5_K" if mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS") else main
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, main)
