"""Weights read and packed by many threads: the bytes that packing them at once gives; errors; Ctrl-C."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks import any_rows
from toys import Shape, write_toy

from tinyslm.backends.base import Weights
from tinyslm.errors import FileError
from tinyslm.formats import BY_NAME
from tinyslm.gguf import GGUF

native = pytest.importorskip("tinyslm.backends.native", reason="the C core is not built")
lib, ffi = native.lib, native.ffi
# type, rows, columns, unit, panels: slices of many rows, of one unit, of the whole, and a panel that is not full
SOURCES = [
    ("Q4_0", 9000, 512, 16, True), ("Q6_K", 176, 16384, 16, True), ("F16", 9600, 96, 48, True),
    ("F32", 7, 40000, 16, True), ("Q8_0", 70, 64, 16, False), ("Q4_K", 12000, 256, 240, True),
    ("BF16", 9000, 64, 16, False),
]  # fmt: skip
GAP = 64


def test_any_threads_load_what_one_call_packs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sources = ffi.new("slm_source[]", len(SOURCES))
    expected, got, orders = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    with (tmp_path / "weights").open("w+b", buffering=0) as file:
        for source, (name, n, k, unit, panels) in zip(sources, SOURCES, strict=True):
            kind, data = BY_NAME[name], any_rows(BY_NAME[name], n, k, rng)
            units = [at + rng.permutation(min(unit, n - at)) for at in range(0, n, unit)]
            order = np.concatenate(units).astype(np.int32) if unit > 16 else np.arange(n, dtype=np.int32)
            orders += [order, np.pad(order, (0, -n % 16), constant_values=-1)]
            expected.append(packed(kind.id, k, data, orders[-1]) if panels else data.ravel())
            step = lib.slm_panel_bytes(kind.id, k) + GAP
            if panels:  # which go on behind a gap
                apart = np.full((len(orders[-1]) // 16, step), 0xA5, np.uint8)
                apart[:, :-GAP] = expected[-1].reshape(len(apart), -1)
                expected[-1] = apart.ravel()
            got.append(np.full_like(expected[-1], 0xA5))
            source.file, source.type, source.n, source.k, source.unit = file.fileno(), kind.id, n, k, unit
            source.step = step
            source.panels, source.target = panels, ffi.from_buffer("uint8_t[]", got[-1])
            source.order = ffi.from_buffer("int32_t[]", orders[-2]) if unit > 16 else ffi.NULL
            source.offset = file.seek(5, os.SEEK_END)
            file.write(data.tobytes())
        for threads in (1, 3):
            for a in got:
                a[:] = 0xA5
            loading = ffi.new("slm_loading *", {"sources": sources, "count": len(SOURCES), "failed": -1})
            with ThreadPoolExecutor(threads) as pool:
                assert not any(pool.map(lib.slm_load, [loading] * threads))
            assert loading.failed == -1
            assert loading.done == sum(n * lib.slm_row_bytes(BY_NAME[name].id, k) for name, n, k, _, _ in SOURCES)
            for a, b, row in zip(got, expected, SOURCES, strict=True):
                assert (a == b).all(), row


def packed(kind: int, k: int, data: np.ndarray, order: np.ndarray) -> np.ndarray:
    out = np.zeros(len(order) // 16 * lib.slm_panel_bytes(kind, k), np.uint8)
    rows = ffi.from_buffer("int32_t[]", order)
    lib.slm_pack(kind, k, ffi.from_buffer("uint8_t[]", data), rows, len(order) // 16, ffi.from_buffer("uint8_t[]", out))
    return out


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return tmp_path / "toy.gguf"


def make(path: Path, **options: Any) -> None:
    program = write_toy(path, Shape(types=("F32", "F16")))
    with GGUF.open(path) as file:
        native.Native(program, Weights(file), 2, **options).close()


def broken(monkeypatch: pytest.MonkeyPatch, path: Path, **fields: int) -> None:
    """The file ends within its last matrix when it is read, or what C is told of it is changed."""
    made = native._loading

    def loading(placements: Sequence[Any], arena: Any, weights: Weights, types: dict[str, int]) -> Any:
        keep, told = made(placements, arena, weights, types)
        at = max(range(len(keep[0])), key=lambda i: keep[0][i].offset)
        for name, value in fields.items():
            setattr(keep[0][at], name, value)
        if not fields:
            os.truncate(path, keep[0][at].offset + 9)
        return keep, told

    monkeypatch.setattr(native, "_loading", loading)


def test_a_file_that_shrinks_meanwhile(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, toy)
    with pytest.raises(FileError, match="shrank") as caught:
        make(toy)
    assert (caught.value.path, caught.value.offset) == (str(toy), toy.stat().st_size)


def test_a_file_that_cannot_be_read(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, toy, file=-1)
    with pytest.raises(FileError, match=os.strerror(errno.EBADF)) as caught:
        make(toy)
    assert caught.value.where


def test_who_interrupts_does_not_wait_for_the_rest(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = list[Any]()

    def interrupted(futures: object, timeout: float | None) -> None:
        raise KeyboardInterrupt

    def load(loading: Any) -> int:
        states.append(loading)
        while not loading.stop:
            pass
        return 0

    monkeypatch.setattr(native, "wait", interrupted)
    monkeypatch.setattr(native, "lib", Stopped(load))
    with pytest.raises(KeyboardInterrupt):
        make(toy)
    assert len(states) == 2


class Stopped:
    """C's library, but that loading only waits for being stopped."""

    def __init__(self, load: Any) -> None:
        self.slm_load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)
