"""The reader and the writer on sound files, and what they say of files that are something else."""

from __future__ import annotations

import itertools
import os
import pickle
import struct
import threading
import time
from io import FileIO
from pathlib import Path

import ggufs
import numpy as np
import pytest
from ggufs import REAL_FILES, SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from small import has_nameless

from tinyslm.errors import ClosedError, FileError, OptionError, UnsupportedError
from tinyslm.formats import TYPE_IDS
from tinyslm.gguf import GGUF, TensorData, ValueType, write


def put(tmp_path: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def message(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        GGUF.open(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path.parent) in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    return text


def same(left: object, right: object) -> bool:
    """Equal in value and type, arrays within tuples included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value(tmp_path: Path, version: int) -> None:
    with GGUF.open(put(tmp_path, ggufs.small_file(version))) as file:
        assert file.version == version
        assert file.alignment == 32
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["letters"] == "né 😀"
        assert file.metadata["negative"] == -(2**63)
        assert file.metadata["scalar.7"] is True
        assert isinstance(file.metadata["scalar.6"], float)
        assert file.metadata["tokens"] == ["a", "\udcff\udcfe", "é"]
        for kind, dtype in enumerate(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "?"]):
            value = file.metadata[f"array.{kind}"]
            assert isinstance(value, np.ndarray)
            assert value.dtype == np.dtype(dtype)
            assert value.tolist() == [0, 1, 1]
            assert not value.flags.writeable
        assert same(file.metadata["nested"], (np.array([1, 2], np.uint8), ["x"], ()))
        assert file.metadata["none.8"] == []
        assert file.metadata["none.9"] == ()
        assert file.metadata_types["scalar.10"] is ValueType.UINT64
        assert file.size == file.path.stat().st_size == sum(file.sizes.values())


def test_values_longer_than_the_window(tmp_path: Path) -> None:
    numbers, letters = np.arange(100_000, dtype=np.float64), "né" * 300_000
    tokens = ["a" * 262_136, "b" * 262_137, letters, "", "c"] + [f"token {i}" for i in range(100_000)]
    bools = np.arange(300_000) % 3 == 0
    metadata = {"n": numbers, "s": letters, "t": tokens, "b": bools, "end": 1}
    write(tmp_path / "m.gguf", metadata, [("w", (1,), 0, np.ones(1, np.float32))])
    with GGUF.open(tmp_path / "m.gguf") as file:
        assert all(same(file.metadata[key], value) for key, value in metadata.items())
        assert not any(file.metadata[key].flags.writeable for key in "nb")
        assert file.read(file.tensors["w"]).tobytes() == np.ones(1, "<f4").tobytes()


def test_tensors(tmp_path: Path) -> None:
    content = ggufs.small_file()
    with GGUF.open(put(tmp_path, content)) as file:
        matrix, cube = file.tensors["matrix"], file.tensors["cube"]
        assert (matrix.shape, matrix.rows, matrix.row_bytes, matrix.nbytes) == ((32, 4), 4, 18, 72)
        assert (cube.rows, cube.row_bytes) == (6, 8)
        assert matrix.format.name == "Q4_0"
        assert matrix.path == file.path
        assert file.read(matrix).tobytes() == content[matrix.offset : matrix.offset + 72]
        assert matrix.offset % 32 == 0
        part = np.zeros((2, 18), np.uint8)
        file.read_into(matrix, 1, 3, part)
        np.testing.assert_array_equal(part, file.read(matrix)[1:3])
        view = memoryview(bytearray(18))
        file.read_into(matrix, 3, 4, view)
        assert bytes(view) == file.read(matrix)[3].tobytes()
        file.read_into(matrix, 2, 2, memoryview(bytearray()))
        assert file.tensors["point"].format.name == "I8"


def test_a_type_that_can_only_be_copied_names_the_tool_that_makes_another(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", {}, [("sums", (32, 1), TYPE_IDS["Q8_1"], np.zeros(36, np.uint8))])
    with (
        GGUF.open(tmp_path / "m.gguf") as file,
        pytest.raises(UnsupportedError, match=r"Q8_1.*llama-quantize.*'sums'"),
    ):
        _ = file.tensors["sums"].format


def test_wrong_arguments_of_a_read(tmp_path: Path) -> None:
    with GGUF.open(put(tmp_path, ggufs.small_file())) as file:
        matrix = file.tensors["matrix"]
        read_only, strided = np.zeros(18, np.uint8), np.zeros(36, np.uint8)[::2]
        read_only.flags.writeable = False
        for start, stop, buffer in (
            (0, 5, np.zeros(90, np.uint8)),
            (-1, 0, np.zeros(18, np.uint8)),
            (2, 1, np.zeros(18, np.uint8)),
            (0, 1, np.zeros(17, np.uint8)),
            (0, 1, read_only),
            (0, 1, strided),
        ):
            with pytest.raises(OptionError):
                file.read_into(matrix, start, stop, buffer)
    with pytest.raises(ClosedError):
        file.read(matrix)
    file.close()


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = put(tmp_path, ggufs.small_file())
    with GGUF.open(path) as file:
        cube = file.tensors["cube"]
        os.truncate(path, cube.offset + 10)
        with pytest.raises(FileError, match="shrank") as caught:
            file.read(cube)
        assert caught.value.offset == cube.offset + 10
        assert caught.value.where == "cube"


class SlowSeek(FileIO):
    """Lets other threads in between a seek and the read that follows."""

    def seek(self, offset: int, whence: int = 0) -> int:
        position = super().seek(offset, whence)
        time.sleep(1e-5)
        return position


@pytest.mark.parametrize("positional", [True, False])
def test_reads_from_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positional: bool) -> None:
    if not positional:
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.setattr("tinyslm.gguf.FileIO", SlowSeek)
    rows = np.arange(256 * 64, dtype=np.float32).reshape(256, 64)
    write(tmp_path / "m.gguf", {}, [("w", (64, 256), 0, rows)])
    wrong = []
    with GGUF.open(tmp_path / "m.gguf") as file:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            out = np.empty((1, 256), np.uint8)
            for row in rng.integers(0, 256, 200).tolist():
                file.read_into(file.tensors["w"], row, row + 1, out)
                if out.tobytes() != rows[row].tobytes():
                    wrong.append(row)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_tensors_beyond_four_gigabytes(tmp_path: Path) -> None:
    far = 5 << 30
    tensors = [ggufs.tensor("wide", (1 << 20, 1 << 10), 24, 0), ggufs.tensor("far", (8,), 0, far)]
    path = put(tmp_path, ggufs.gguf([], tensors, b"\0"))
    with GGUF.open(_extended(path, far + 32)) as file:
        at = file.tensors["far"].offset
        with open(path, "r+b") as raw:
            raw.seek(at)
            raw.write(np.arange(8, dtype="<f4").tobytes())
        assert file.read(file.tensors["far"]).view("<f4").tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
        assert file.size > far


def _extended(path: Path, data: int) -> Path:
    """The file with as many bytes of data behind its header; a hole on the disk."""
    os.truncate(path, (path.stat().st_size // 32) * 32 + data)
    return path


# ---- split models


def test_a_split_model_is_opened_by_its_first_part(tmp_path: Path) -> None:
    paths = ggufs.split_model(tmp_path)
    with GGUF.open(paths[0]) as file:
        assert list(file.tensors) == ["t1", "t2"]
        assert [file.tensors[name].path for name in ("t1", "t2")] == paths[1:]
        assert file.read(file.tensors["t2"]).tobytes() == b"\2" * 32
        assert list(file.sizes) == paths
    assert "open its first part, model-00001-of-00003.gguf" in message(paths[2])


def test_broken_split_models(tmp_path: Path) -> None:
    paths = ggufs.split_model(tmp_path)
    second, third = paths[1].read_bytes(), paths[2].read_bytes()
    paths[2].unlink()
    assert message(paths[0]).startswith(f"{paths[2]}: part 3 of a split model is missing")
    paths[2].write_bytes(second)
    assert "expected 2, got 1" in message(paths[0])
    paths[2].write_bytes(third.replace(b"t2", b"t1"))
    assert "the tensor is in model-00002-of-00003.gguf too ('t1')" in message(paths[0])
    paths[2].write_bytes(ggufs.gguf([ggufs.scalar("split.no", 2, 2), ggufs.scalar("split.count", 2, 3)]))
    assert "tensors are missing ('split.tensors.count'): expected 2, got 1" in message(paths[0])
    paths[2].write_bytes(third[:-1])
    assert message(paths[0]).startswith(str(paths[2]))
    renamed = paths[0].rename(tmp_path / "renamed.gguf")
    assert "first part" in message(renamed)
    renamed.write_bytes(ggufs.gguf([ggufs.text("split.count", "3")]))
    assert "split.count" in message(renamed)


# ---- files that are something else


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"GG", "not a GGUF file"),
        (struct.pack("<Q", 64) + b'{"__metadata__":{}}', "safetensors"),
        (b"PK\x03\x04" + bytes(60), "zip archive, such as a PyTorch checkpoint"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<HTML><head>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"tjgg" + bytes(30), "before GGUF"),
        (b"FUGG" + bytes(30), "big-endian"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'{"model": 1}', "JSON"),
        (b"# A title\n\nSome words.\n", "text"),
        (bytes(4096), "zeros"),
        (b"\x7fELF\x02\x01", "7f 45 4c 46"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is too old"),
        (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "no GGUF version"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "newer"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian file (GGUF version 3)"),
    ],
)
def test_names_what_it_is_instead(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in message(put(tmp_path, content))


def test_directory_missing_pipe_and_unreadable(tmp_path: Path) -> None:
    assert "directory" in message(tmp_path)
    assert "no such file" in message(tmp_path / "none.gguf")
    assert "cannot be opened" in message(tmp_path / "a\0b")
    assert "cannot be opened" in message(put(tmp_path, b"x", "file") / "below.gguf")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "not a regular file" in message(tmp_path / "pipe")


# ---- the writer


@pytest.mark.parametrize("path", REAL_FILES or [pytest.param(None, marks=pytest.mark.skip)], ids=lambda p: p and p.stem)
def test_real_files_written_again_are_equal(tmp_path: Path, path: Path) -> None:
    again = tmp_path / "again.gguf"
    with GGUF.open(path) as file:
        tensors = [TensorData(t.name, t.shape, t.type, file.read(t)) for t in file.tensors.values()]
        write(again, file.metadata, tensors, types=file.metadata_types)
        with GGUF.open(again) as copy:
            assert list(copy.metadata) == list(file.metadata)
            assert all(same(copy.metadata[key], value) for key, value in file.metadata.items())
            assert copy.metadata_types == file.metadata_types
    assert again.read_bytes() == path.read_bytes()  # every one of these is version 3 and in the order of its header


def test_every_kind_of_value_written_again(tmp_path: Path) -> None:
    content = ggufs.small_file()
    with GGUF.open(put(tmp_path, content)) as file:
        tensors = [(t.name, t.shape, t.type, iter(file.read(t))) for t in file.tensors.values()]
        write(tmp_path / "again.gguf", file.metadata, tensors, types=file.metadata_types)
    again = (tmp_path / "again.gguf").read_bytes()
    assert again[: len(content)] == content
    assert len(again) % 32 == 0
    assert not any(again[len(content) :])


def test_types_follow_from_values(tmp_path: Path) -> None:
    values = {
        "a": (True, ValueType.BOOL),
        "b": (7, ValueType.UINT32),
        "c": (-7, ValueType.INT32),
        "d": (2**40, ValueType.UINT64),
        "e": (-(2**40), ValueType.INT64),
        "f": (0.5, ValueType.FLOAT32),
        "g": ("x", ValueType.STRING),
        "h": (np.float64(0.1), ValueType.FLOAT64),
        "i": (np.int8(-1), ValueType.INT8),
        "j": ([], ValueType.ARRAY),
    }
    write(tmp_path / "m.gguf", {key: value for key, (value, _) in values.items()})
    with GGUF.open(tmp_path / "m.gguf") as file:
        assert file.metadata == {key: value for key, (value, _) in values.items()}
        assert file.metadata_types == {key: kind for key, (_, kind) in values.items()}
    lists = {"a": [1, -2], "b": [2**40], "c": [0.5, 1], "d": [True, False], "e": np.arange(3, dtype=">u2")}
    write(tmp_path / "m.gguf", lists)
    with GGUF.open(tmp_path / "m.gguf") as file:
        dtypes = [value.dtype for value in file.metadata.values() if isinstance(value, np.ndarray)]
        assert dtypes == [np.int32, np.int64, np.float32, np.bool_, np.uint16]
        assert [list(value) for value in file.metadata.values()] == [list(value) for value in lists.values()]  # type: ignore[call-overload]


def test_alignment(tmp_path: Path) -> None:
    tensors = [TensorData(f"t{i}", (3,), 0, np.full(3, i, np.float32)) for i in range(3)]
    write(tmp_path / "m.gguf", {"general.alignment": 4096}, tensors)
    with GGUF.open(tmp_path / "m.gguf") as file:
        assert file.alignment == 4096
        assert [t.offset % 4096 for t in file.tensors.values()] == [0, 0, 0]
        assert [file.read(t).view("<f4")[0, 0] for t in file.tensors.values()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        ({"a": object()}, []),
        ({"a": [1, "x"]}, []),
        ({"a": 2**64}, []),
        ({"a": np.array([1j])}, []),
        ({"general.alignment": 48}, []),
        ({}, [("t", (3,), 0, np.zeros(2, np.float32))]),
        ({}, [("t", (3,), 0, np.zeros(4, np.float32))]),
        ({}, [("t", (3,), 0, itertools.repeat(np.zeros(2, np.float32)))]),
        ({}, [("t", (33,), 2, np.zeros(18, np.uint8))]),
        ({}, [("t", (3,), 4, np.zeros(3, np.float32))]),
        ({}, [("t", (), 0, np.zeros(1, np.float32))]),
        ({}, [("t", (1,), 0, np.zeros(1, np.float32))] * 2),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, metadata: dict[str, object], tensors: list) -> None:
    with pytest.raises(OptionError):
        write(tmp_path / "m.gguf", metadata, tensors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nameless", [True, False])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool) -> None:
    """Where a file can be without a name until it is whole, and elsewhere."""
    path, seen = put(tmp_path, b"old"), list[int]()
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)

    def chunks(fails: bool = True):
        yield np.zeros(1, np.float32)
        seen.append(len(list(tmp_path.glob(".tinyslm-*.tmp"))))
        if fails:
            raise KeyboardInterrupt
        yield np.ones(1, np.float32)

    with pytest.raises(KeyboardInterrupt):
        write(path, {}, [("t", (2,), 0, chunks())])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_bytes() == b"old"
    with pytest.raises(FileError, match="cannot be written"):
        write(tmp_path / "none" / "m.gguf", {})
    write(path, {}, [("t", (2,), 0, chunks(False))])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]
    with GGUF.open(path) as file:
        assert file.read(file.tensors["t"]).view("<f4").ravel().tolist() == [0, 1]
    assert seen == [0 if has_nameless(tmp_path) else 1] * 2
    with pytest.raises(OptionError):
        write("", {})


# ---- speed (in processor time, for the machine may be busy)


@pytest.mark.skipif(not REAL_FILES, reason="the real files are not here")
def test_a_large_vocabulary_reads_quickly() -> None:
    path = SHARED / "vocab" / "ggml-vocab-llama-bpe.gguf"  # 128k tokens, 280k merges
    seconds = []
    for _ in range(3):
        start = time.process_time()
        GGUF.open(path).close()
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5


def test_opening_reads_the_header_only(tmp_path: Path) -> None:
    path = put(tmp_path, ggufs.gguf([], [ggufs.tensor("wide", (1 << 20, 1 << 12), 24, 0)], b"\0"))
    start = time.process_time()
    GGUF.open(_extended(path, 1 << 32)).close()
    assert time.process_time() - start < 0.3


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_many_strings_are_read_as_a_few_are(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = st.binary(min_size=1, max_size=20).map(lambda raw: raw.replace(b"\0", b"\xc3"))
    odd = st.sampled_from(
        [b"", b"\0", b"a\0", b"\0" * 9, b"\x01" + b"\0" * 7 + b"x", b"x" * 255, b"\xc3" * 256, b"\xff"]
    )
    texts = data.draw(st.lists(plain, min_size=5, max_size=9)) * 200
    for at in data.draw(st.lists(st.sampled_from([0, 1, 500, len(texts)]), max_size=3)):
        texts.insert(at, data.draw(odd))
    raw = ggufs.gguf(
        [ggufs.key("k", 9, ggufs.array(8, map(ggufs.string, texts))), ggufs.scalar("n", 10, 0)]
    )  # looks like strings
    path = put(tmp_path_factory.mktemp("strings"), raw)
    with GGUF.open(path) as file:
        assert file.metadata == {"k": [text.decode("utf-8", "surrogateescape") for text in texts], "n": 0}


def test_many_strings_of_which_the_first_is_longer_than_any_file(tmp_path: Path) -> None:
    body = ggufs.array(8, [b"\x01" * 8, *[ggufs.string("abc")] * 2000])
    with pytest.raises(FileError, match="too early") as caught:
        GGUF.open(put(tmp_path, ggufs.gguf([ggufs.key("k", 9, body)])))
    assert caught.value.got == str(8 + 2000 * 11)
