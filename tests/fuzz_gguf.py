"""The long fuzz run of the GGUF reader: python tests/fuzz_gguf.py --inputs 1000000 [--seed N]

Each input is a small file made from the seed and its number alone: its fields are drawn at random, some of them
hostile, then bytes may be flipped, cut or doubled. The reader must parse it or raise FileError, and what it parses must
lie within the file. Anything else is a crash: the input is saved, how to repeat it is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import ggufs

from tinyslm.errors import FileError
from tinyslm.gguf import GGUF

SLOW = 1.0  # seconds
EDGES = [0, 1, 2, 3, 7, 8, 31, 32, 33, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63]
EDGES += [2**64 - n for n in (1, 2, 8, 32, 256)]
NAMES = [
    b"general.alignment",
    b"general.architecture",
    b"split.no",
    b"split.count",
    b"a",
    b"",
    b"\xff",
    b"\xed\xa0\x80",
]
STRINGS = [b"", b"x", b"llama", b"\xc3\xa9", b"\xff", b"\xf0\x9f\x98\x80", bytes(300)]


class Mutator:
    """Draws one file; the same seed draws the same file."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lies = self.random.choice([0.0, 0.01, 0.05, 0.3])  # how often a field is not what it should be

    def field(self, true: int, bits: int) -> int:
        """A count, length, type or offset: mostly the true one."""
        if self.random.random() >= self.lies:
            return true
        drawn = self.random.choice(
            [true + 1, true - 1, true * 2, self.random.choice(EDGES), self.random.getrandbits(8)]
        )
        return drawn % (1 << bits)

    def u32(self, true: int) -> bytes:
        return struct.pack("<I", self.field(true, 32))

    def u64(self, true: int) -> bytes:
        return struct.pack("<Q", self.field(true, 64))

    def string(self, value: bytes) -> bytes:
        return self.u64(len(value)) + value

    def value(self, kind: int, depth: int = 0) -> bytes:
        if kind == ggufs.STRING:
            return self.string(self.random.choice(STRINGS))
        if kind == ggufs.ARRAY:
            inner = self.random.choice([*ggufs.CODES, ggufs.STRING, *([ggufs.ARRAY] * 4 if depth < 10 else [])])
            count = self.random.choice([0, 1, 2, 5])
            members = b"".join([self.value(inner, depth + 1) for _ in range(count)])
            return self.u32(inner) + self.u64(count) + members
        size = struct.calcsize(ggufs.CODES[kind])
        return self.random.choice([bytes(size), b"\1" + bytes(size - 1), self.random.randbytes(size)])

    def key(self, index: int) -> bytes:
        name = self.random.choice([f"key.{index}".encode()] * 6 + NAMES)
        if name in NAMES[:4] and self.random.random() < 0.7:
            kind = ggufs.U32 if name == NAMES[0] else ggufs.U16
            return self.string(name) + self.u32(kind) + (self.u32(32) if kind == ggufs.U32 else b"\0\0")
        kind = self.random.choice([*range(13), ggufs.ARRAY, ggufs.ARRAY])
        return self.string(name) + self.u32(kind) + self.value(kind)

    def tensors(self) -> tuple[list[bytes], int]:
        """Their entries, and how many bytes of data they ask for."""
        infos, end = [], 0
        for index in range(self.random.choice([0, 1, 2, 4])):
            name = self.random.choice([f"blk.{index}".encode()] * 12 + NAMES)
            kind, block, size = self.random.choice([(0, 1, 4), (1, 1, 2), (2, 32, 18), (8, 32, 34), (14, 256, 210)])
            shape = [block * self.random.choice([1, 2]), *self.random.choice([[], [1], [3], [2, 2], [1, 1, 1]])]
            dims = b"".join([self.u64(dim) for dim in shape])
            infos.append(self.string(name) + self.u32(len(shape)) + dims + self.u32(kind) + self.u64(end))
            count = 1
            for dim in shape:
                count *= dim
            end += -(-count // block * size // 32) * 32
        return infos, end

    def file(self) -> bytes:
        keys = [self.key(index) for index in range(self.random.choice([0, 1, 3, 8]))]
        tensors, data = self.tensors()
        counts = self.u32(self.random.choice([2, 3])) + self.u64(len(tensors)) + self.u64(len(keys))
        header = b"GGUF" + counts + b"".join(keys) + b"".join(tensors)
        return self.damage(header + bytes(-len(header) % 32 + data))

    def damage(self, content: bytes) -> bytes:
        kind = self.random.randrange(8)  # five in eight files stay as they are
        if kind > 2:
            return content
        out = bytearray(content)
        for _ in range(self.random.choice([1, 1, 2, 8])):
            at = self.random.randrange(len(out)) if out else 0
            if kind == 0:
                out[at : at + 1] = self.random.randbytes(1)
            elif kind == 1:
                del out[at:]
            else:
                start = self.random.randrange(len(out) + 1)
                out[at:at] = out[start : start + self.random.choice([1, 4, 8, 64])]
        return bytes(out)


def check(path: Path) -> bool:
    """Opens the file: True when it is sound, False for a FileError. An AssertionError for an absurd result."""
    try:
        file = GGUF.open(path)
    except FileError as error:
        message = str(error)
    else:
        _check_sound(file)
        return True
    assert "\n" not in message, "a message of more than one line"
    assert len(message) < 500 + 2 * len(str(path)), "a message longer than a line"
    return False


def _check_sound(file: GGUF) -> None:
    with file:
        end = 0
        for tensor in sorted(file.tensors.values(), key=lambda tensor: tensor.offset):
            assert end <= tensor.offset, "tensors overlap"
            assert tensor.offset % file.alignment == 0, "a tensor is misaligned"
            end = tensor.offset + tensor.nbytes
            assert file.read(tensor).nbytes == tensor.nbytes > 0, "a tensor is empty"
        assert end <= file.size, "a tensor reaches beyond the file"
        assert set(file.metadata) == set(file.metadata_types)


def run(inputs: int, seed: int, path: Path) -> tuple[int, int, float]:
    """How many inputs parsed, how many crashed, and the seconds of the slowest."""
    sound, crashes, slowest, begin = 0, 0, 0.0, time.perf_counter()
    for number in range(inputs):
        # The file is overwritten in place: a new one for each input would cost as much again.
        content = Mutator((seed << 32) + number).file()
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.write(content)
            file.truncate()
        start = time.perf_counter()
        try:
            sound += check(path)
            seconds = time.perf_counter() - start
            assert seconds < SLOW, f"took {seconds:.1f} s"
            slowest = max(slowest, seconds)
        except Exception:
            crashes += 1
            kept = Path(f"crash-{seed}-{number}.gguf")
            kept.write_bytes(content)
            traceback.print_exc()
            print(f"input {number} of seed {seed} is saved as {kept}; repeat it with --only {kept}", file=sys.stderr)
        if sys.stderr.isatty() and number % 1000 == 0:
            rate = (number + 1) / (time.perf_counter() - begin)
            print(f"\r{number:,} of {inputs:,}, {rate:,.0f} a second, {crashes} crashes", end="", file=sys.stderr)
    return sound, crashes, slowest


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the GGUF reader.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=Path, help="check this one file instead")
    options = parser.parse_args()
    if options.only:
        print("sound" if check(options.only) else "refused")
        return 0
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        sound, crashes, slowest = run(options.inputs, options.seed, Path(folder) / "input.gguf")
    seconds = time.perf_counter() - start
    refused = options.inputs - sound - crashes
    print(
        f"{options.inputs:,} inputs in {seconds:.0f} s: {sound:,} sound, {refused:,} refused, {crashes} crashes, "
        f"slowest {slowest * 1e3:.0f} ms"
    )
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
