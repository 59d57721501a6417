"""Random rows of every tensor type, as they stand in a file."""

from __future__ import annotations

import numpy as np

from tinyslm.formats import Format

# Where the f16 scale lies in a block, then the f16 minimum. That of IQ1_M is spread, and MXFP4 and NVFP4 have none.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ1_S": [0], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0],
          "IQ3_XXS": [0], "IQ3_S": [0], "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64], "Q1_0": [0],
          "Q2_0": [0]}  # fmt: skip
# Those that the formats themselves can round to.
QUANTISED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def put_scale(kind: Format, blocks: np.ndarray, at: int, scale: np.ndarray) -> None:
    """f16 scales (n,) into blocks (n, bytes) at `at`; in IQ1_M, whose parts are the tops of 4 words, wherever."""
    if kind.name == "IQ1_M":
        parts = scale.astype("<f2").view("<u2")[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15
        words = np.ascontiguousarray(blocks[:, 48:]).view("<u2")
        blocks[:, 48:] = (words & 0xFFF | parts << 12).astype("<u2").view(np.uint8)
    else:
        blocks[:, at : at + 2] = scale.astype("<f2")[:, None].view(np.uint8)


def scales_of(kind: Format) -> list[int]:
    return [48] if kind.name == "IQ1_M" else SCALES.get(kind.name, [])


def any_rows(kind: Format, rows: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Any bytes, all ones, all zeros, every code in turn; scales of every sort, nan and inf too."""
    rows_bytes = k // kind.block * kind.bytes
    out = rng.integers(0, 256, (rows, rows_bytes), np.uint8)
    out[0], out[1], out[2], out[3], out[4] = 255, 0, 128, 127, np.arange(rows_bytes) % 256
    blocks = out.reshape(-1, kind.bytes)
    edges = np.array([0, 0x8000, 1, 0x83FF, 0x7C00, 0xFC00, 0x7E01, 0x7C01, 0x7BFF, 0x3C00], "<u2").view("<f2")
    for at in scales_of(kind):
        chosen = rng.integers(0, 3, len(blocks)) == 0
        some = blocks[chosen]
        put_scale(kind, some, at, rng.choice(edges, len(some)))
        blocks[chosen] = some
    return out


def sound_rows(kind: Format, rows: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Rows under finite scales about 1; the first four of equal bytes, so that sums reach as far as they can."""
    if kind.block == 1:
        values = rng.standard_normal((rows, k), np.float32)
        return values.astype("<f8").view(np.uint8) if kind.name == "F64" else kind.quantise(values)
    out = rng.integers(0, 256, (rows, k // kind.block * kind.bytes), np.uint8)
    out[0], out[1], out[2], out[3] = 255, 0, 128, 127
    blocks = out.reshape(-1, kind.bytes)
    for at in scales_of(kind):
        put_scale(kind, blocks, at, rng.uniform(0.5, 2, len(blocks)) * rng.choice([-1, 1], len(blocks)))
    if kind.name == "MXFP4":
        blocks[:, 0] = rng.integers(120, 136, len(blocks))
    return out
