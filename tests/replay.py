"""Builds the replay driver (csrc/replay.c) and runs it over dumps of small models, on each instruction set, with one
to four threads, and with steps that are cancelled half-way. Every run must give the bits that this machine's best
instruction set gave.

    python tests/replay.py                          the driver as it is
    python tests/replay.py --sanitize address       AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/replay.py --sanitize thread        ThreadSanitizer
    python tests/replay.py --qemu                   on AArch64: neon_dot, neon and scalar, under qemu-user
    python tests/replay.py --fuzz 100               random models and batches, then damaged dumps, all sanitized
    python tests/replay.py --isa avx2               one instruction set alone

--qemu needs a cross compiler and qemu-user: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user.
--cc names another compiler, such as --cc "python -m ziglang cc -target aarch64-linux-musl".
"""

from __future__ import annotations

import argparse
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import dumps  # noqa: E402

FLAGS = ["-std=gnu11", "-fno-fast-math", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
SANITIZERS = {"address": "address,undefined", "undefined": "undefined", "thread": "thread"}
REPORTED = 99  # the exit code of a sanitizer
ENVIRONMENT = {
    "ASAN_OPTIONS": f"exitcode={REPORTED}:detect_leaks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": f"exitcode={REPORTED}:print_stacktrace=1",
    "TSAN_OPTIONS": f"exitcode={REPORTED}",
}
QEMU = ["qemu-aarch64", "-cpu", "max"]


@dataclass(frozen=True)
class Driver:
    """A driver that was built, and what runs it."""

    command: tuple[str, ...]

    def run(self, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **ENVIRONMENT},
        )

    def isas(self) -> list[str]:
        return self.run("--isas").stdout.split()


def build(
    folder: Path,
    compiler: Sequence[str],
    flags: Sequence[str],
    runner: Sequence[str] = (),
    sanitize: Sequence[str] = (),
    plain: Sequence[str] = (),
) -> Driver:
    """Compile the driver and the C core from source, with the flags of `sanitize` but for the files named in `plain`.
    CalledProcessError, its stderr told, where that fails."""
    runpy.run_path(str(ROOT / "csrc" / "build_ffi.py"))  # which writes formats/grids.inc
    names = ("cpu", "dispatch", "pack", "pool", "program", "replay", "turn", "walk")
    core = [ROOT / "csrc" / f"{name}.c" for name in names]
    sources = [*sorted((ROOT / "csrc" / "isa").glob("*.c")), *core]  # the slowest first
    flags = [*FLAGS, *flags, "-DSLM_REPLAY", f"-I{ROOT / 'csrc'}"]

    def compiled(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        extra = () if source.stem in plain else sanitize
        subprocess.run([*compiler, *flags, *extra, "-c", str(source), "-o", target], check=True, text=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    program = str(folder / "replay")
    subprocess.run([*compiler, *flags, *sanitize, *objects, "-o", program, "-lm"], check=True, text=True)
    return Driver((*runner, program))


def failure(run: subprocess.CompletedProcess[str]) -> str:
    """What is wrong with a run of a sound dump; empty if nothing is."""
    return "" if run.returncode == 0 and not run.stderr else f"exit {run.returncode}\n{run.stdout}{run.stderr}".strip()


def check(driver: Driver, paths: Sequence[Path], isas: Sequence[str], threads: Sequence[int], loud: bool) -> int:
    """Run every dump on every instruction set; how many runs went wrong."""
    wrong = 0
    for path in paths:
        for isa in isas:
            for i, count in enumerate(threads):
                cancel = ["--cancel", "--repeat", "2"] if i else []
                run = driver.run(str(path), "--isa", isa, "--threads", str(count), *cancel)
                problem = failure(run)
                wrong += bool(problem)
                if loud or problem:
                    print(f"{path.stem:24}", problem or run.stdout.strip(), flush=True)
    return wrong


def damage(whole: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, mostly in the numbers and ops at the start; or cut off; or more added."""
    data, kind = bytearray(whole), rng.integers(8)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        return bytes(data) + rng.bytes(int(rng.integers(1, 64)))
    end = len(data) if kind == 2 else min(len(data), 8000)
    for _ in range(rng.integers(1, 4)):
        at = 4 * int(rng.integers(2, end // 4))
        old = int.from_bytes(data[at : at + 4], "little", signed=True)
        near = [old + 1, old - 1, old + 64, old - 64, 2 * old, old // 2, -1, 0, 1, 2**31 - 1, -(2**31), 2**20]
        new = int(rng.choice(near)) if rng.integers(4) else old ^ 1 << int(rng.integers(31))
        data[at : at + 4] = (new & 2**32 - 1).to_bytes(4, "little")
    return bytes(data)


def fuzz(driver: Driver, folder: Path, isas: Sequence[str], rounds: range) -> int:
    """Each round: a random model on every instruction set, then 20 damaged copies of its dump and of a family's, which
    must be refused or run without a sanitizer's word. How many went wrong; what did is kept."""
    wrong = slow = 0
    known, broken = list(dumps.families(folder)), folder / "broken.dump"
    for seed in rounds:
        path = dumps.make(folder, "fuzz", dumps.random_shape(seed), bool(seed % 2), seed)
        wrong += check(driver, [path], isas, [1 + seed % 4], False)
        rng, wholes = np.random.default_rng(seed), [path.read_bytes(), known[seed % len(known)].read_bytes()]
        for i in range(20):
            broken.write_bytes(damage(wholes[i % 2], rng))
            try:
                run = driver.run(str(broken), "--isa", isas[i % len(isas)], timeout=20)
            except subprocess.TimeoutExpired:
                slow += 1
                continue
            if run.returncode not in (0, 1, 2) or "anitizer" in run.stderr or "runtime error" in run.stderr:
                kept = Path(tempfile.gettempdir()) / f"replay-fuzz-{seed}-{i}.dump"
                kept.write_bytes(broken.read_bytes())
                wrong += 1
                print(f"round {seed}, {kept}: exit {run.returncode}\n{run.stderr}", flush=True)
    print(f"fuzz: rounds {rounds.start} to {rounds.stop - 1}, {slow} damaged dumps ran longer than 20 s")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", choices=SANITIZERS)
    parser.add_argument("--qemu", action="store_true")
    parser.add_argument("--isa")
    parser.add_argument("--fuzz", type=int, metavar="N", default=0)
    parser.add_argument("--from", type=int, default=0, dest="start", help="first round of --fuzz")
    parser.add_argument("--cc", help="the compiler's command")
    args = parser.parse_args()
    compiler = shlex.split(args.cc or ("aarch64-linux-gnu-gcc" if args.qemu else os.environ.get("CC", "cc")))
    chosen = args.sanitize or ("address" if args.fuzz and not args.qemu else "")
    sanitize = ["-g1", "-fno-sanitize-recover=all", f"-fsanitize={SANITIZERS[chosen]}"] if chosen else []
    flags = ["-O1" if chosen else "-O2", *["-static"] * args.qemu]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        driver = build(folder, compiler, flags, QEMU if args.qemu else (), sanitize)
        isas = [args.isa] if args.isa else driver.isas()
        print("instruction sets:", *isas)
        if args.fuzz:
            wrong = fuzz(driver, folder, isas, range(args.start, args.start + args.fuzz))
        else:
            wrong = check(driver, list(dumps.make_all(folder)), isas, [1, 2, 3] if args.qemu else [1, 2, 3, 4], True)
    print(f"{wrong} runs went wrong" if wrong or not isas else "all the same bits")
    return int(bool(wrong) or not isas)


if __name__ == "__main__":
    sys.exit(main())
