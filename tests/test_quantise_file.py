"""Quantising files: what they hold, what is refused, and what is left when it goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small import ROOT, has_nameless, is_writing, tiny_file

from tinyslm import gguf, shapes
from tinyslm.backends import has_native
from tinyslm.errors import FileError, OptionError
from tinyslm.formats import TYPE_IDS
from tinyslm.gguf import GGUF, TensorData
from tinyslm.quantise import quantise_file
from tinyslm.quantise.rows import quantise_rows

NATIVE = pytest.mark.skipif(not has_native(), reason="the C core was not built")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_file(tmp_path_factory.mktemp("quantise"), kind="F16")


@NATIVE
def test_a_file(source: Path, tmp_path: Path) -> None:
    out, shown = tmp_path / "out.gguf", list[float]()
    with GGUF.open(source) as file:
        more = {**file.metadata, "general.file_type": np.uint32(1), "x.last": "é", "split.count": np.uint16(1)}
        kinds = {**file.metadata_types, "split.count": gguf.ValueType.UINT16}
        tensors = [TensorData(t.name, t.shape, t.type, file.read(t)) for t in file.tensors.values()]
    more["general.alignment"] = 128
    extra = TensorData("blk.0.rope_freqs", (3,), TYPE_IDS["I32"], np.array([1, -2, 3], np.int32))
    gguf.write(tmp_path / "in.gguf", more, [extra, *tensors], types=kinds)
    result = quantise_file(tmp_path / "in.gguf", out, "Q4_K_M", threads=2, progress=shown.append)
    assert shown == sorted(shown)
    assert shown[-1] == 1
    with GGUF.open(tmp_path / "in.gguf") as old, GGUF.open(out) as new:
        assert [k for k in old.metadata if k != "split.count"] == list(new.metadata)[:-1]
        assert new.metadata["general.file_type"] == 15
        assert new.metadata["general.quantization_version"] == 2
        assert new.alignment == 128
        changed = ("general.file_type", "general.quantization_version")
        for key in [key for key in new.metadata if key not in changed]:
            assert new.metadata_types[key] == old.metadata_types[key]
            np.testing.assert_array_equal(new.metadata[key], old.metadata[key])
        assert list(new.tensors) == list(old.tensors)
        assert result.after == sum(t.nbytes for t in new.tensors.values())
        assert result.before == sum(t.nbytes for t in old.tensors.values())
        for name, t in new.tensors.items():
            if t.type == old.tensors[name].type:
                np.testing.assert_array_equal(new.read(t), old.read(old.tensors[name]))
            else:  # rows of 64 and 96
                more = name == "output.weight" or (
                    name.startswith("blk.1.") and ("attn_v" in name or "ffn_down" in name)
                )
                assert t.type_name == ("Q8_0" if more else "Q5_0")
                values = old.tensors[name].format.dequantise(old.read(old.tensors[name]))
                np.testing.assert_array_equal(new.read(t), quantise_rows(t.type_name, values))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


@NATIVE
def test_the_file_does_not_depend_on_threads_or_slices(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantise_file(source, tmp_path / "a.gguf", "Q4_0", threads=1)
    monkeypatch.setattr("tinyslm.quantise.file.SLICE", 1000)
    quantise_file(source, tmp_path / "b.gguf", "Q4_0", threads=3)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@NATIVE
def test_refused_files(source: Path, tmp_path: Path) -> None:
    def refused(wanted: str, *args: object, kind: type[Exception] = OptionError, **more: object) -> None:
        before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        with pytest.raises(kind, match=wanted):
            quantise_file(*args, **more)  # type: ignore[arg-type]
        assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before

    own = tmp_path / "own.gguf"
    own.write_bytes(source.read_bytes())
    (tmp_path / "link.gguf").symlink_to(own)
    os.link(own, tmp_path / "hard.gguf")
    out = tmp_path / "out.gguf"
    for name in ("own", "link", "hard"):
        refused("is the file that is read", own, tmp_path / f"{name}.gguf", "Q4_0")
    refused("there is no type 'Q9'", own, out, "Q9")
    refused("this is a directory", own, tmp_path, "Q4_0", kind=FileError)
    refused("its folder does not exist", own, tmp_path / "none" / "x", "Q4_0", kind=FileError)
    quantise_file(own, tmp_path / "q8.gguf", "Q8_0")
    refused("quantised already .Q8_0.*or --requantize", tmp_path / "q8.gguf", out, "Q4_0")
    assert quantise_file(tmp_path / "q8.gguf", out, "Q4_0", requantise=True).types["Q4_0"] == 15
    quantise_file(tmp_path / "q8.gguf", out, "Q8_0")  # nothing is quantised once more
    assert out.read_bytes() == (tmp_path / "q8.gguf").read_bytes()
    gguf.write(tmp_path / "words.gguf", {"general.architecture": "llama"}, [])
    refused("no weights: it is a vocabulary", tmp_path / "words.gguf", out, "Q4_0", kind=FileError)
    nan = TensorData("blk.0.attn_q.weight", (32, 2), 0, np.full(64, np.nan, np.float32))
    gguf.write(tmp_path / "nan.gguf", {"general.architecture": "llama"}, [nan])
    refused(
        "no finite number, or too large for Q4_0 .'blk.0.attn_q.w", tmp_path / "nan.gguf", out, "Q4_0", kind=FileError
    )


@NATIVE
def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("tinyslm.quantise.file.shutil.disk_usage", lambda _: type("usage", (), {"free": 100}))
        with pytest.raises(FileError, match="the disk has no room"):
            quantise_file(source, tmp_path / "out.gguf", "Q4_0")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinyslm.gguf_writer.os.fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        quantise_file(source, tmp_path / "out.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == []


# ---- the command line ----

TINYSLM = [sys.executable, "-m", "tinyslm"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def call(*args: object) -> tuple[int, str]:
    done = subprocess.run([*TINYSLM, *map(str, args)], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


@NATIVE
def test_the_verbs(source: Path, tmp_path: Path) -> None:
    text, matrix, out = tmp_path / "text.txt", tmp_path / "m.gguf", tmp_path / "out.gguf"
    text.write_text("abc " * 100)
    code, said = call("imatrix", "-m", source, "-f", text, "-o", matrix, "-c", 64, "--chunks", 3)
    assert (code, said.count("\n")) == (0, 1)
    assert "over 3 chunks of 64 tokens" in said
    code, said = call("quantize", source, out, "q4_k", "--imatrix", matrix)
    assert (code, said.count("\n")) == (0, 1)
    assert "bits a weight; tensors: Q5_0 13, F32 5, Q8_0 3\n" in said
    with GGUF.open(out) as file:
        assert file.metadata["general.file_type"] == 15
        assert file.metadata["quantize.imatrix.chunks_count"] == 3
    before = sorted(tmp_path.iterdir())
    for wanted, code, *args in (
        ("there is no type 'Q4_KM'; did you mean Q4_K_M? there are F32, F16, ", 2, source, out, "Q4_KM"),
        ("nothing here quantises to IQ2_XS; did you mean IQ4_XS? there are F32, ", 2, source, out, "iq2_xs"),
        ("no such file", 1, tmp_path / "none.gguf", out, "Q4_0"),
        ("is the file that is read", 1, source, source, "Q4_0"),
    ):
        got, said = call("quantize", *args)
        assert (got, said.count("\n")) == (code, 1)
        assert wanted in said
    assert sorted(tmp_path.iterdir()) == before


@NATIVE
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_process_that_is_ended_leaves_nothing(tmp_path: Path, name: str) -> None:
    """Nor does it touch what was there; where files without a name are unknown, a killed one leaves a temporary."""
    source, out = tmp_path / "in.gguf", tmp_path / "out"
    shapes.make(source, shapes.Shape(4, 512, 8, 8, 2048, 4000, 1 << 10, True), "F16")
    out.mkdir()
    (out / "q.gguf").write_bytes(b"old")
    command = [*TINYSLM, "quantize", str(source), str(out / "q.gguf"), "Q2_K", "-t", "1"]
    slow = {**ENVIRONMENT, "TINYSLM_ISA": "scalar"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it reaches one in the background too
    try:
        process = subprocess.Popen(command, env=slow, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    while not is_writing(process.pid, out):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate()
    assert (process.returncode, said) == (130 if name == "SIGINT" else -getattr(signal, name), b"")
    clean = name == "SIGINT" or has_nameless(out)
    assert [p.name for p in out.iterdir() if clean or p.suffix != ".tmp"] == ["q.gguf"]
    assert (out / "q.gguf").read_bytes() == b"old"
