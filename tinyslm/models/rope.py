"""Rotation tables: plain, linear (Chen et al., arXiv:2306.15595), YaRN (Peng et al., arXiv:2309.00071), longrope (Ding
et al., arXiv:2402.13753), and Llama 3's factors, which its files hold as `rope_freqs.weight`."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np

from ..config import Config, Keys
from ..errors import FileError
from ..ops import Builder
from .tensors import Tensors


def table(b: Builder, keys: Keys, c: Config, tensors: Tensors, context: int) -> int:
    """The table that the file asks for. `context`: tokens asked for, by which longrope chooses its factors."""
    half = c.rope_dim // 2
    if "rope_factors_long.weight" in tensors or "rope_factors_short.weight" in tensors:
        trained = keys.count("rope.scaling.original_context_length", c.context)
        long, short = (tensors.floats(f"rope_factors_{which}.weight", half) for which in ("long", "short"))
        magnitude = keys.positive("rope.scaling.attn_factor", 1.0)
        return b.table(c.frequencies(keys.path, long if context > trained else short), magnitude)
    if c.rope_scaling == "longrope":
        raise FileError(keys.path, "a tensor is missing", where="rope_factors_long.weight")
    if c.rope_scaling == "yarn":
        return yarn_table(b, keys, c)
    factors = tensors.floats("rope_freqs.weight", half) if "rope_freqs.weight" in tensors else None
    return b.table(c.frequencies(keys.path, factors))


def plain_table(b: Builder, keys: Keys, c: Config, base: float) -> int:
    """A table of another base, without scaling."""
    return b.table(replace(c, rope_base=base, rope_factor=1.0).frequencies(keys.path))


def yarn_table(b: Builder, keys: Keys, c: Config) -> int:
    """Fast pairs turn as they were trained to, slow ones are divided by the factor; between, a blend of both."""
    trained = keys.count("rope.scaling.original_context_length", c.context)
    fast = keys.positive("rope.scaling.yarn_beta_fast", 32.0)
    slow = keys.positive("rope.scaling.yarn_beta_slow", 1.0)
    plain = replace(c, rope_factor=1.0).frequencies(keys.path)
    if c.rope_base <= 1:
        raise FileError(keys.path, "a key is absurd", where=f"{c.arch}.rope.freq_base", expected="above 1",
                        got=c.rope_base)  # fmt: skip

    def pair_of(turns: float) -> float:
        """The pair that makes so many full turns over the trained context."""
        return c.rope_dim * _ln(trained / (turns * 2 * math.pi)) / (2 * _ln(c.rope_base))

    low, high = max(math.floor(pair_of(fast)), 0), min(math.ceil(pair_of(slow)), c.rope_dim - 1)
    slowed = np.clip((np.arange(c.rope_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    kept = np.array(plain)
    magnitude = keys.positive("rope.scaling.attn_factor", 1.0) * (1 + 0.1 * _ln(max(c.rope_factor, 1.0)))
    return b.table((kept / c.rope_factor * slowed + kept * (1 - slowed)).tolist(), magnitude)


def _ln(x: float) -> float:
    """The logarithm, the same bits on every machine."""
    with localcontext() as exact:
        exact.prec = 40
        return float(Decimal(x).ln())
