"""Importance matrices of mixtures of experts: what each of them sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import ROOT, tiny_file

from tinyslm import gguf, load, models
from tinyslm.backends import has_native, reference
from tinyslm.backends.base import Weights
from tinyslm.config import Keys
from tinyslm.engine import Engine, Work
from tinyslm.gguf import GGUF, TensorData
from tinyslm.kvcache import Sequence
from tinyslm.model import file_tensors
from tinyslm.quantise import quantise_file, read_importance
from tinyslm.quantise.collect import collect_importance
from tinyslm.quantise.rows import quantise_rows

pytestmark = pytest.mark.skipif(not has_native(), reason="the C core was not built")


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
    sums, counts = _experts_seen(path, ids)
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


def _experts_seen(path: Path, chunks: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
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
