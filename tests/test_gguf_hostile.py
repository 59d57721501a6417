"""Broken and malicious files: each gives one FileError that says what and where, quickly and in little memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ggufs
import pytest
from fuzz_gguf import Mutator, check
from ggufs import ARRAY, BOOL, STRING, U8, U32, U64, array, gguf, key, numbers, scalar, small_file, string, tensor, text
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyslm.errors import FileError
from tinyslm.gguf import GGUF

HUGE = 2**64 - 1
ALIGNMENT = "general.alignment"


def caught(tmp_path: Path, content: bytes) -> FileError:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(FileError) as info:
        GGUF.open(path)
    assert time.perf_counter() - start < 1
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 500 + len(str(path))
    return info.value


def nested(depth: int) -> bytes:
    body = numbers(U8)
    for _ in range(depth - 1):
        body = array(ARRAY, [body])
    return body


T = tensor("t", (32,), 0, 0)
BROKEN: dict[str, tuple[bytes, str, str | None, int | None]] = {
    # what is broken: file, words of the message, key or tensor, byte offset
    "tensor count": (gguf([], [T], tensor_count=HUGE), "the number of tensors is more than", None, 8),
    "key count": (gguf([], key_count=HUGE), "the number of metadata keys is more than", None, 16),
    "key count, a little": (gguf([], key_count=1), "the number of metadata keys is more than", None, 16),
    "one key too few": (gguf([text("a", "x" * 50)], key_count=2), "too early", "metadata key 2 of 2", 95),
    "key length": (gguf([struct.pack("<Q", HUGE) + b"abcdef"]), "name is too long", "metadata key 1 of 1", 24),
    "key length beyond the file": (gguf([struct.pack("<Q", 99) + b"abcdef"]), "too early", "metadata key 1 of 1", 32),
    "key not UTF-8": (gguf([text(b"a\xff", "x")]), "not UTF-8 ('metadata key 1 of 1') at byte 33", None, 33),
    "same key twice": (gguf([text("a", "x"), text("a", "y")]), "twice", "a", 46),
    "value type": (gguf([key("a", 13, b"abcd")]), "unknown value type", "a", 33),
    "value type, far": (gguf([key("a", 0xFFFFFFFF, b"abcd")]), "unknown value type", "a", 33),
    "array type": (gguf([key("a", ARRAY, array(13, [b"x"]))]), "unknown value type of an array", "a", 37),
    "array count": (gguf([key("a", ARRAY, struct.pack("<IQ", U32, HUGE))]), "too early", "a", 49),
    "string count": (gguf([key("a", ARRAY, struct.pack("<IQ", STRING, HUGE))]), "too early", "a", 49),
    "one token too few": (gguf([key("a", ARRAY, struct.pack("<IQ", STRING, 3) + string("a") * 2)]), "24 more", "a", 49),
    "one array too few": (gguf([key("a", ARRAY, struct.pack("<IQ", ARRAY, 3) + numbers(U8) * 2)]), "36 more", "a", 49),
    "array of arrays count": (gguf([key("a", ARRAY, struct.pack("<IQ", ARRAY, HUGE))]), "too early", "a", 49),
    "string length": (gguf([key("a", STRING, struct.pack("<Q", HUGE))]), "too early", "a", 45),
    "token length": (gguf([key("a", ARRAY, array(STRING, [struct.pack("<Q", HUGE)]))]), "too early", "a", 49),
    "string not UTF-8": (gguf([text("a", b"xy\xc3")]), "not UTF-8", "a", 47),
    "bool": (gguf([key("a", BOOL, b"\2")]), "neither 0 nor 1", "a", 37),
    "bools": (gguf([key("a", ARRAY, array(BOOL, [b"\1", b"\2"]))]), "neither 0 nor 1", "a", 37),
    "nesting": (gguf([key("a", ARRAY, nested(9))]), "nested too deeply", "a", None),
    "nesting, far": (gguf([key("a", ARRAY, nested(5000))]), "nested too deeply", "a", None),
    "alignment 0": (gguf([scalar("general.alignment", U32, 0)], [T], bytes(128)), "bad alignment", ALIGNMENT, None),
    "alignment 48": (gguf([scalar("general.alignment", U32, 48)]), "expected a power of two", ALIGNMENT, None),
    "alignment 4": (gguf([scalar("general.alignment", U32, 4)]), "bad alignment", ALIGNMENT, None),
    "alignment 2**31": (gguf([scalar("general.alignment", U32, 2**31)]), "bad alignment", ALIGNMENT, None),
    "alignment UINT64": (gguf([scalar("general.alignment", U64, 32)]), "got UINT64", ALIGNMENT, None),
    "alignment string": (gguf([text("general.alignment", "32")]), "got STRING", ALIGNMENT, None),
    "tensor name not UTF-8": (gguf([], [tensor(b"\x80", (8,), 0, 0)], bytes(64)), "not UTF-8", "tensor 1 of 1", 32),
    "same tensor twice": (gguf([], [T, tensor("t", (32,), 0, 128)], bytes(256)), "twice", "t", 57),
    "no dimensions": (gguf([], [tensor("t", (), 0, 0)], bytes(64)), "number of dimensions", "t", 33),
    "five dimensions": (gguf([], [tensor("t", (1,) * 5, 0, 0)], bytes(64)), "number of dimensions", "t", 33),
    "2**32-1 dimensions": (gguf([], [string("t") + b"\xff" * 32]), "number of dimensions", "t", 33),
    "dimension 0": (gguf([], [tensor("t", (8, 0), 0, 0)], bytes(64)), "a dimension is zero", "t", 37),
    "row of 0": (gguf([], [tensor("t", (0, 8), 2, 0)], bytes(64)), "a dimension is zero", "t", 37),
    "product 2**64": (gguf([], [tensor("t", (2**32, 2**32), 0, 0)], bytes(64)), "complete", "t", 96),
    "product 2**64 + 8": (gguf([], [tensor("t", (2**62, 4, 1, 1), 24, 0)], bytes(64)), "complete", "t", 96),
    "part of a block": (gguf([], [tensor("t", (33,), 2, 0)], bytes(64)), "multiple of 32 for Q4_0, got 33", "t", 37),
    "tensor type": (gguf([], [tensor("t", (32,), 43, 0)], bytes(64)), "unknown tensor type", "t", 45),
    "removed type": (gguf([], [tensor("t", (32,), 31, 0)], bytes(64)), "Q4_0_4_4 was removed", "t", 45),
    "misaligned": (gguf([], [tensor("t", (8,), 0, 8)], bytes(64)), "expected a multiple of 32, got 8", "t", 49),
    "out of the file": (gguf([], [tensor("t", (8,), 0, 2**63)], bytes(64)), "32 bytes, got 0", "t", 2**63 + 64),
    "one byte short": (gguf([], [tensor("t", (8,), 0, 0)], bytes(31)), "expected 32 bytes, got 31", "t", 64),
    "no data": (gguf([], [tensor("t", (8,), 0, 0)]), "expected 32 bytes, got 0", "t", 64),
    "overlap": (gguf([], [tensor("a", (16,), 0, 32), tensor("b", (9,), 0, 0)], bytes(128)), "overlaps 'b'", "a", 128),
    "same place": (gguf([], [tensor("a", (8,), 0, 0), tensor("b", (8,), 0, 0)], bytes(64)), "overlaps 'a'", "b", 96),
    "long name": (gguf([text("k" * 60000, "x"), text("k" * 60000, "x")]), "twice", "k" * 77 + "...", None),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words", "where", "offset"), BROKEN.values(), ids=BROKEN)
def test_broken_files(tmp_path: Path, content: bytes, words: str, where: str | None, offset: int | None) -> None:
    error = caught(tmp_path, content)
    assert words in str(error)
    assert where is None or error.where == where
    assert offset is None or error.offset == offset


def test_eight_levels_of_arrays_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([key("a", ARRAY, nested(8))]))
    with GGUF.open(path) as file:
        assert str(file.metadata["a"]).count("(") == 8  # seven tuples around one array


@pytest.mark.parametrize("version", [2, 3])
def test_truncation_at_every_byte(tmp_path: Path, version: int) -> None:
    content, path = small_file(version), tmp_path / "m.gguf"
    path.write_bytes(content)
    GGUF.open(path).close()
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        with pytest.raises(FileError):
            GGUF.open(path)


def big(part: bytes, count: int, kind: int) -> bytes:
    return gguf([key("a", ARRAY, struct.pack("<IQ", kind, count) + part * count)])


def big_tensors(count: int) -> bytes:
    return gguf([], [tensor(f"t{i}", (1, 1, 1, 1), 0, 32 * i) for i in range(count)], bytes(32 * count))


# Files that hold what they claim, made to cost the most time or memory.
COSTLY: dict[str, Callable[[], bytes]] = {
    "two-letter tokens": lambda: big(string("ab"), 2_000_000, STRING),
    "tokens of one bad byte": lambda: big(string(b"\xff"), 2_000_000, STRING),
    "empty tokens": lambda: big(string(""), 8_000_000, STRING),
    "wide tokens": lambda: big(string("a" * 200_000 + "😀"), 300, STRING),
    "one wide string": lambda: gguf([text("a", "a" * (60 << 20) + "😀")]),
    "one wide token": lambda: big(string("a" * (15 << 20) + "😀"), 1, STRING),
    "one long string": lambda: gguf([text("a", "a" * (100 << 20))]),
    "empty arrays": lambda: big(array(U8, []), 2_000_000, ARRAY),
    "arrays of one": lambda: big(numbers(U8, 1), 2_000_000, ARRAY),
    "empty arrays of strings": lambda: big(array(STRING, []), 2_000_000, ARRAY),
    "a long bad array of bools": lambda: big(b"\2", 100 << 20, BOOL),
    "keys": lambda: gguf([key(f"{i}", ARRAY, numbers(U8)) for i in range(65536)]),
    "tensors": lambda: big_tensors(65536),
}

MEASURE = """
import sys, time
from tinyslm.gguf import GGUF
from tinyslm.errors import FileError
def high_water():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before, start = high_water(), time.process_time()  # the machine may be busy
try:
    GGUF.open(sys.argv[1]).close()
except FileError:
    pass
print(time.process_time() - start, (high_water() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark from /proc")
@pytest.mark.parametrize("make", COSTLY.values(), ids=COSTLY)
def test_costly_files_are_bounded(tmp_path: Path, make: Callable[[], bytes]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(make())
    size = path.stat().st_size
    run = [sys.executable, "-W", "ignore", "-c", MEASURE, str(path)]
    seconds, memory = map(float, subprocess.run(run, check=True, capture_output=True, text=True).stdout.split())
    path.unlink()
    assert seconds < 1
    assert memory < size + 100e6


def test_a_huge_sparse_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with open(path, "wb") as file:
        file.write(gguf([key("a", ARRAY, struct.pack("<IQ", U8, 1 << 36))]))
        file.truncate(1 << 37)
    start = time.perf_counter()
    with pytest.raises(FileError, match="the header is too long"):
        GGUF.open(path)
    assert time.perf_counter() - start < 1


def check_in_time(path: Path) -> None:
    """`check`, in under a second of this process's time: the machine may be busy."""
    start = time.process_time()
    check(path)
    assert time.process_time() - start < 1


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**63))
def test_mutated_files_parse_or_raise(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(Mutator(seed).file())
    check_in_time(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_overwritten_and_cut_files_parse_or_raise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(ggufs.small_file())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + 8] = data.draw(st.binary(max_size=16))
    path = tmp_path_factory.getbasetemp() / "overwritten.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    check_in_time(path)
