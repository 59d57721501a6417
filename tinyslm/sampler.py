"""Draws a request's tokens: in C where it was built, with the same result in NumPy elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import sampling
from .backends import has_native
from .backends.base import Draw
from .errors import NonFiniteError, OptionError
from .sampling import Sampling


class Sampler:
    """The draw for one request: its parameters with the seed fixed. One thread at a time."""

    def __init__(self, params: Sampling, vocab: int) -> None:
        self.seed = params.resolved_seed()
        self.params = replace(params, seed=self.seed)
        for token in self.params.logit_bias or {}:
            if token >= vocab:
                raise OptionError(f"logit_bias: token id {token} is outside the vocabulary of {vocab}")
        self._native = _Native(self.params, vocab) if has_native() else None

    def draw(
        self, logits: np.ndarray, index: int, recent: Sequence[int], logprob: bool, maxima: np.ndarray | None = None
    ) -> tuple[int, float | None]:
        """Token number `index` of the request from float32 (vocabulary,), and its log probability if wanted.

        `maxima`: the largest of each 16 logits, where they are known, and then no logit is NaN or infinite.
        `recent`: prompt and answer so far; the penalties look at the last `repeat_last_n`. Raises NonFiniteError.
        """
        window = self._window(recent)
        if self._native:
            return self._native.draw(logits, index, window, logprob, maxima)
        token, p = sampling.sample(logits, self.params, index, window)
        return token, p if logprob else None

    def ahead(self, index: int, recent: Sequence[int], logprob: bool, ends: Sequence[int]) -> Draw:
        """How a backend's burst draws from token number `index` on; arguments as for draw."""
        assert self._native
        native = {**self._native.fixed, "last": self._last(), "scratch": self._native.room()}
        return Draw(native, index, self._window(recent), ends, logprob)

    def _window(self, recent: Sequence[int]) -> Sequence[int]:
        last = self._last()
        return recent[max(0, len(recent) - last) :] if last else ()

    def _last(self) -> int:
        """How many tokens the penalties look back at."""
        p = self.params
        penalised = p.repeat_penalty != 1 or p.frequency_penalty != 0 or p.presence_penalty != 0
        return p.repeat_last_n if penalised else 0


_held = threading.local()


def _scratch(size: int) -> np.ndarray:
    """Memory of the calling thread for one draw: `size` bytes on 64. Requests share it, as there may be many."""
    room: np.ndarray | None = getattr(_held, "room", None)
    if room is None or len(room) < size:
        block = np.empty(size + 64, np.uint8)
        room = _held.room = block[-block.ctypes.data % 64 :]
    return room


class _Native:
    def __init__(self, params: Sampling, vocab: int) -> None:
        from ._native import ffi, lib

        self.ffi, self.lib, self.vocab = ffi, lib, vocab
        self.sampler = ffi.new("slm_sampler *")
        for name in ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
                     "presence_penalty", "top_k", "seed"):  # fmt: skip
            setattr(self.sampler, name, getattr(params, name))
        bias = params.logit_bias or {}
        self.bias_ids, self.bias = ffi.new("int32_t[]", list(bias)), ffi.new("float[]", list(bias.values()))
        self.fixed = {"sampler": self.sampler, "bias_ids": self.bias_ids, "bias": self.bias, "n_bias": len(bias)}
        self.logprob = ffi.new("float *")

    def room(self) -> Any:
        return self.ffi.from_buffer(_scratch(self.lib.slm_sample_scratch(self.vocab)))

    def draw(
        self, logits: np.ndarray, index: int, recent: Sequence[int], logprob: bool, maxima: np.ndarray | None
    ) -> tuple[int, float | None]:
        null, buffer = self.ffi.NULL, self.ffi.from_buffer
        token = self.lib.slm_sample(
            buffer("float[]", logits), null if maxima is None else buffer("float[]", maxima), self.vocab,
            self.sampler, index, list(recent), len(recent),
            self.bias_ids, self.bias, len(self.bias), null, self.logprob if logprob else null, 0, null, null,
            self.room(),
        )  # fmt: skip
        if token == self.lib.SLM_E_NONFINITE:
            raise NonFiniteError("no token can be drawn: a logit is no finite number, or all are banned")
        assert token >= 0, token
        return int(token), float(self.logprob[0]) if logprob else None
