"""The replay driver over a few small dumps, built with AddressSanitizer and UBSan where the compiler has them.

The kernels of single instruction sets stay as they are, for they take a minute to compile with sanitizers; that is what
`python tests/replay.py --sanitize address` is for.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tinyslm._native", reason="the C core is not built")
import dumps
import replay

COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), "")
pytestmark = pytest.mark.skipif(not COMPILER, reason="no C compiler")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> replay.Driver:
    folder = tmp_path_factory.mktemp("driver")
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run([COMPILER, *sanitize, str(probe), "-o", str(folder / "probe")], capture_output=True)
    works = built.returncode == 0 and subprocess.run([folder / "probe"], capture_output=True).returncode == 0
    kernels = [f.stem for f in (replay.ROOT / "csrc" / "isa").glob("*.c") if f.stem != "scalar"]
    return replay.build(folder, [COMPILER], ["-O1"], sanitize=sanitize if works else [], plain=kernels)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return dumps.small(tmp_path_factory.mktemp("dumps"))


def test_every_instruction_set_and_thread_count_gives_the_bits_of_the_extension(
    driver: replay.Driver, paths: list[Path]
) -> None:
    assert "scalar" in driver.isas()
    for path in paths:
        hashes = set()
        for isa in driver.isas():
            for threads in (1, 2, 3):
                run = driver.run(str(path), "--isa", isa, "--threads", str(threads), *["--cancel"] * (threads == 2))
                assert not replay.failure(run), f"{path.name}, {isa}: {replay.failure(run)}"
                assert run.stdout.startswith(f"{isa} threads {threads} ")
                hashes.add(run.stdout.split("hash ")[1].split()[0])
        assert len(hashes) == 1


def test_other_bits_are_noticed(driver: replay.Driver, paths: list[Path], tmp_path: Path) -> None:
    whole = bytearray(paths[0].read_bytes())
    whole[-4] ^= 1  # the last logit; it may be followed by padding
    whole[-8] ^= 1
    changed = tmp_path / "changed.dump"
    changed.write_bytes(whole)
    run = driver.run(str(changed))
    assert run.returncode == 1
    assert "expected" in run.stdout
    assert "DIFFERS" in run.stdout


def test_damaged_dumps_are_refused_or_run_within_their_memory(
    driver: replay.Driver, paths: list[Path], tmp_path: Path
) -> None:
    rng, codes = np.random.default_rng(0), []
    copies = [replay.damage(paths[i % len(paths)].read_bytes(), rng) for i in range(24)]
    for at in rng.choice(np.arange(104, 4000, 4), 60, replace=False):  # words of ops: far outside of all memory
        copies.append(bytearray(paths[0].read_bytes()))
        copies[-1][at : at + 4] = (1 << 22).to_bytes(4, "little")
    for copy in copies:
        broken = tmp_path / "broken.dump"
        broken.write_bytes(copy)
        run = driver.run(str(broken), "--isa", "scalar", timeout=60)
        assert run.returncode in (0, 1, 2), run.stderr
        codes.append(run.returncode)
    assert 20 < codes.count(2) < len(copies)


def test_what_cannot_run_is_refused(driver: replay.Driver, paths: list[Path], tmp_path: Path) -> None:
    for arguments, told in [
        ([str(paths[0]), "--isa", "mmx"], "no such instruction set here"),
        ([str(paths[0]), "--threads", "0"], "a count goes from 1"),
        ([str(tmp_path / "missing.dump")], "cannot be read"),
        ([__file__], "not a dump"),
        ([], "replay DUMP"),
    ]:
        run = driver.run(*arguments)
        assert run.returncode == 2
        assert told in run.stderr
