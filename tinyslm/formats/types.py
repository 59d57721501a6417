"""Every tensor type that GGUF files have ever named: its id, its name, and how many bytes a block takes.

Ids, names and sizes are those of ggml's `ggml_type`. A type listed here can be measured and copied; to be computed
with it also needs a `Format` in one of the sibling modules.
"""

from __future__ import annotations

from typing import NamedTuple


class TypeSize(NamedTuple):
    """`block` weights along a row are stored together in `bytes` bytes."""

    name: str
    block: int
    bytes: int


TYPES: dict[int, TypeSize] = {
    0: TypeSize("F32", 1, 4),
    1: TypeSize("F16", 1, 2),
    2: TypeSize("Q4_0", 32, 18),
    3: TypeSize("Q4_1", 32, 20),
    6: TypeSize("Q5_0", 32, 22),
    7: TypeSize("Q5_1", 32, 24),
    8: TypeSize("Q8_0", 32, 34),
    9: TypeSize("Q8_1", 32, 36),
    10: TypeSize("Q2_K", 256, 84),
    11: TypeSize("Q3_K", 256, 110),
    12: TypeSize("Q4_K", 256, 144),
    13: TypeSize("Q5_K", 256, 176),
    14: TypeSize("Q6_K", 256, 210),
    15: TypeSize("Q8_K", 256, 292),
    16: TypeSize("IQ2_XXS", 256, 66),
    17: TypeSize("IQ2_XS", 256, 74),
    18: TypeSize("IQ3_XXS", 256, 98),
    19: TypeSize("IQ1_S", 256, 50),
    20: TypeSize("IQ4_NL", 32, 18),
    21: TypeSize("IQ3_S", 256, 110),
    22: TypeSize("IQ2_S", 256, 82),
    23: TypeSize("IQ4_XS", 256, 136),
    24: TypeSize("I8", 1, 1),
    25: TypeSize("I16", 1, 2),
    26: TypeSize("I32", 1, 4),
    27: TypeSize("I64", 1, 8),
    28: TypeSize("F64", 1, 8),
    29: TypeSize("IQ1_M", 256, 56),
    30: TypeSize("BF16", 1, 2),
    34: TypeSize("TQ1_0", 256, 54),
    35: TypeSize("TQ2_0", 256, 66),
    39: TypeSize("MXFP4", 32, 17),
    40: TypeSize("NVFP4", 64, 36),
    41: TypeSize("Q1_0", 128, 18),
    42: TypeSize("Q2_0", 64, 18),
}

# Ids that ggml gave up. The 4_4 to 8_8 kinds were Q4_0 and IQ4_NL interleaved for one CPU.
REMOVED: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

TYPE_NAMES: dict[int, str] = {**{id_: size.name for id_, size in TYPES.items()}, **REMOVED}
TYPE_IDS: dict[str, int] = {name: id_ for id_, name in TYPE_NAMES.items()}
