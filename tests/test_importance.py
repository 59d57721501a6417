"""Importance matrices: what is measured, of experts too, what is read, and what quantising makes of it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from small import ROOT, STORIES, tiny_file

from tinyslm import gguf, load, models, tokenizer
from tinyslm.backends import has_native, reference
from tinyslm.backends.base import Weights
from tinyslm.config import Keys
from tinyslm.engine import Engine, Work
from tinyslm.errors import FileError, OptionError
from tinyslm.gguf import GGUF, TensorData
from tinyslm.kvcache import Sequence
from tinyslm.model import file_tensors
from tinyslm.quantise import quantise_file, read_importance
from tinyslm.quantise.collect import collect_importance
from tinyslm.quantise.rows import quantise_rows

pytestmark = pytest.mark.skipif(not has_native(), reason="the C core was not built")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_file(tmp_path_factory.mktemp("importance"), kind="F16")


# ---- read, and used ----


def old_matrix(path: Path, entries: dict[str, np.ndarray], calls: int) -> Path:
    data = struct.pack("<i", len(entries))
    for name, values in entries.items():
        data += struct.pack(f"<i{len(name)}sii", len(name), name.encode(), calls, values.size)
        data += (values * calls).astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", calls, 4) + b"text")
    return path


def new_matrix(path: Path, name: str, sums: np.ndarray, counts: list[float]) -> Path:
    tensors = [TensorData(f"{name}.in_sum2", sums.shape[::-1], 0, sums.astype(np.float32)),
               TensorData(f"{name}.counts", (1, len(counts)), 0, np.array(counts, np.float32))]  # fmt: skip
    gguf.write(path, {"general.type": "imatrix", "imatrix.chunk_count": 7, "imatrix.datasets": ["a.txt"]}, tensors)
    return path


def test_importance_of_either_kind(source: Path, tmp_path: Path) -> None:
    name, squares = "blk.0.attn_q.weight", np.random.default_rng(0).lognormal(0, 2, 64).astype(np.float32)
    squares[5] = 0
    old = read_importance(old_matrix(tmp_path / "old.dat", {name: squares}, 4))
    new = read_importance(new_matrix(tmp_path / "new.gguf", name, squares[None] * 512, [512]))
    for found in (old, new):
        np.testing.assert_allclose(found.squares[name], np.maximum(squares, squares.mean() * 1e-6)[None], rtol=1e-6)
    assert (old.chunks, new.chunks, new.datasets) == (4, 7, ("a.txt",))
    with pytest.warns(UserWarning, match="13 matrices are missing, blk.0.attn_k.weight first"):
        quantise_file(source, tmp_path / "out.gguf", "Q4_0", importance=new)
    with GGUF.open(source) as before, GGUF.open(tmp_path / "out.gguf") as after:
        assert after.metadata["quantize.imatrix.dataset"] == "a.txt"
        assert after.metadata["quantize.imatrix.entries_count"] == 1
        t = before.tensors[name]
        wanted = quantise_rows("Q4_0", t.format.dequantise(before.read(t)), new.squares[name][0])
        np.testing.assert_array_equal(after.read(after.tensors[name]), wanted)


def test_each_expert_has_its_own_importance(tmp_path: Path) -> None:
    sums = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    found = read_importance(new_matrix(tmp_path / "m.gguf", "t", sums, [1, 0, 2])).squares["t"]
    np.testing.assert_allclose(found, [sums[0], np.ones(4), sums[2] / 2])


def test_broken_importance(source: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_importance(tmp_path / "none")
    bad = new_matrix(tmp_path / "bad.gguf", name, np.array([[1.0, np.nan]]), [1])
    with pytest.raises(FileError, match="no finite number, or negative"):
        read_importance(bad)
    with pytest.raises(FileError, match="no tensor's name ends in"):
        read_importance(source)
    with pytest.raises(FileError, match=r"no importance matrix: it has no entries"):
        read_importance(old_matrix(tmp_path / "empty.dat", {}, 1))
    whole = old_matrix(tmp_path / "old.dat", {name: np.ones(64)}, 1).read_bytes()
    for size in (0, 3, 20, 100, len(whole) - 20):
        (tmp_path / "cut.dat").write_bytes(whole[:size])
        with pytest.raises(FileError, match="no importance matrix"):
            read_importance(tmp_path / "cut.dat")
    for other, k in (("blk.0.attn_q.weight", 32), ("other", 64)):
        found = read_importance(new_matrix(tmp_path / "other.gguf", other, np.ones((1, k)), [1]))
        with pytest.raises(FileError, match="the importance matrix is of another model"):
            quantise_file(source, tmp_path / "out.gguf", "Q4_0", importance=found)


# ---- measured ----


@pytest.mark.skipif(not STORIES.is_dir(), reason="the real model is not here")
def test_sums_are_those_of_the_reference_backend(tmp_path: Path) -> None:
    path, text = STORIES / "stories260K-f32.gguf", "Once upon a time there was a little girl. " * 8
    assert collect_importance(path, text, tmp_path / "m.gguf", context=70, threads=2) == 1
    with GGUF.open(path) as file:
        ids = np.array(tokenizer.load(file.metadata, path).encode(text)[:70], np.int32)
    sums, _ = _seen(path, ids[None])
    with GGUF.open(tmp_path / "m.gguf") as file:
        assert file.metadata["general.type"] == "imatrix"
        assert (file.metadata["imatrix.chunk_count"], file.metadata["imatrix.chunk_size"]) == (1, 70)
        assert list(file.tensors) == [f"{name}{end}" for name in sorted(sums) for end in (".in_sum2", ".counts")]
        for name, wanted in sums.items():
            t = file.tensors[f"{name}.in_sum2"]
            np.testing.assert_allclose(t.format.dequantise(file.read(t)), wanted, rtol=1e-4, atol=1e-6)
            assert file.read(file.tensors[f"{name}.counts"]).view(np.float32) == 70
    with pytest.raises(OptionError, match="the text has 3 tokens, a chunk needs 70"):
        collect_importance(path, "one", tmp_path / "m.gguf", context=70)
    with pytest.raises(OptionError, match="can have up to 512"):
        collect_importance(path, "one", tmp_path / "m.gguf", context=600)


def test_targets_that_cannot_be_written_are_refused_at_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyslm.quantise.collect.Engine.step", None)
    before = source.read_bytes()
    for target, kind, wanted in (
        (source, OptionError, "is the file that is read"),
        (tmp_path, FileError, "this is a directory"),
        (tmp_path / "none" / "m.gguf", FileError, "its folder does not exist"),
    ):
        with pytest.raises(kind, match=wanted):
            collect_importance(source, "abc " * 100, target, context=64)
    assert source.read_bytes() == before


def test_importance_of_experts(tmp_path: Path) -> None:
    """Each expert's sums are of the tokens that the router sent there; quantising goes by them."""
    golden, path = ROOT / "tests" / "goldens" / "mixtral.gguf", tmp_path / "mixtral.gguf"
    rng, wide = np.random.default_rng(0), ("token_embd.weight", "output.weight")
    with GGUF.open(golden) as file, GGUF.open(tiny_file(tmp_path)) as words:
        made = {key: value for key, value in words.metadata.items() if key.startswith("tokenizer.")}
        metadata = {**file.metadata, **made, "llama.vocab_size": 400}
        tensors = [
            TensorData(t.name, t.shape, t.type, file.read(t)) for t in file.tensors.values() if t.name not in wide
        ]
        width = file.tensors["token_embd.weight"].shape[0]
    tensors += [TensorData(name, (width, 400), 0, rng.standard_normal((400, width), np.float32)) for name in wide]
    gguf.write(path, metadata, tensors)
    text = "abcabd bcad " * 30
    collect_importance(path, text, tmp_path / "m.gguf", context=48, chunks=2)
    found = read_importance(tmp_path / "m.gguf").squares
    with load(path) as model:
        ids = np.array([model.tokenizer.bos, *model.tokenizer.encode(text, bos=False)], np.int32)[:96].reshape(2, 48)
        ids[:, 0] = model.tokenizer.bos
    sums, counts = _seen(path, ids)
    experts = [name for name in sums if "_exps" in name]
    assert len(experts) == 3 * metadata["llama.block_count"]
    with GGUF.open(tmp_path / "m.gguf") as file:
        assert {name.rpartition(".")[0] for name in file.tensors} == set(sums)
        for name, wanted in sums.items():
            held = file.tensors[f"{name}.in_sum2"], file.tensors[f"{name}.counts"]
            assert (held[0].shape[::-1], held[1].shape[::-1]) == (wanted.shape, (len(wanted), 1))
            np.testing.assert_array_equal(file.read(held[1]).view("<f4").ravel(), counts[name])
            np.testing.assert_allclose(held[0].format.dequantise(file.read(held[0])), wanted, rtol=1e-3, atol=1e-5)
    few = sums["blk.0.ffn_up_exps.weight"]
    assert counts["blk.0.ffn_up_exps.weight"].sum() == 2 * 96
    assert not np.allclose(few[0], few[1])
    quantise_file(path, tmp_path / "q.gguf", "Q4_0", importance=read_importance(tmp_path / "m.gguf"))
    with GGUF.open(path) as before, GGUF.open(tmp_path / "q.gguf") as after:
        t = before.tensors["blk.0.ffn_down_exps.weight"]
        values = t.format.dequantise(before.read(t)).reshape(t.shape[::-1])
        wanted = [quantise_rows("Q4_0", *pair) for pair in zip(values, found[t.name], strict=True)]
        got = after.read(after.tensors[t.name])
        np.testing.assert_array_equal(got.reshape(np.shape(wanted)), wanted)


def _seen(path: Path, chunks: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By the reference backend: for each matrix of the layers (matrices, k) and (matrices,)."""
    with GGUF.open(path) as file:
        program = models.build(Keys(path, file.metadata), file_tensors(file))
        backend = reference.Reference(program, Weights(file))
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    run = backend._run

    def watched(op, inputs, batch):  # type: ignore[no-untyped-def]
        for number, w in enumerate(op.experts or (op.weight,)):
            if op.kind in ("matmul", "experts") and w.name.startswith("blk."):
                seen = sums.setdefault(w.name, np.zeros((max(1, len(op.experts)), w.k)))
                count = counts.setdefault(w.name, np.zeros(len(seen)))
                for row, x in enumerate(inputs[0]):
                    parts = x.reshape(-1, w.k)
                    for j, expert in enumerate(inputs[1][row, op.used :] if op.experts else [0]):
                        if expert == number:
                            seen[number] += parts[j % len(parts)].astype(np.float64) ** 2
                            count[number] += 1
        return run(op, inputs, batch)

    backend._run = watched  # type: ignore[method-assign]
    engine = Engine(program, backend)
    for ids in chunks:
        engine.step([Work(Sequence(), ids, len(ids))], np.empty((len(ids), program.vocab), np.float32))
    return sums, counts
