"""The table of what types cost: its measurements on a tale or two, and that it is a table."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import ROOT

from tinyslm.backends import has_native
from tinyslm.formats import BY_NAME
from tinyslm.gguf import GGUF
from tinyslm.perplexity import Scorer, measure

pytestmark = pytest.mark.skipif(
    not has_native() or not (ROOT / "weights" / "tales-f16.gguf").is_file(), reason="no C core, or no model"
)


@pytest.fixture(scope="module")
def quality() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        patch.syspath_prepend(ROOT / "weights")
        yield importlib.import_module("quality")


def test_rows_of_the_table(quality: Any, tmp_path: Path) -> None:
    args = argparse.Namespace(threads=1, speed=None, documents=2)
    with Scorer(quality.MODEL, threads=1, activations=0) as model:
        texts = quality.heldout(model, 2)
        base, own = quality.Recorded(model, texts), measure(model, texts, first=0)
    assert own.tokens == sum(map(len, texts)) - 2
    assert [(t[0], t[-1]) for t in texts] == [(model.tokenizer.bos, model.tokenizer.eos)] * 2
    assert 1 < own.perplexity.value < 1.6, "a held-out tale is foreseen, from its own beginning"
    f16, q8, q4 = rows = [quality.row(BY_NAME[name], texts, base, args, tmp_path) for name in ("F16", "Q8_0", "Q4_1")]
    assert list(tmp_path.iterdir()) == []
    assert f16.quantised.comparison.kl == (0, 0)
    assert f16.quantised.perplexity == own.perplexity
    assert (f16.weights, f16.rounded) == (0, {})
    assert 0 < q8.quantised.comparison.kl.value < q4.quantised.comparison.kl.value / 10
    assert q4.engine.comparison.kl.value == pytest.approx(q4.quantised.comparison.kl.value, rel=0.2)
    for r in (q8, q4):
        assert list(r.rounded) == [32, 64, 128, 256]
        assert 0 < r.rounded[32].kl.value < r.rounded[256].kl.value
        assert r.rounded_in_engine.kl.value == pytest.approx(r.rounded[32].kl.value, rel=0.5)
    text = quality.report(rows, own, args)
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert [row[0] for row in found] == ["type", "---", "F16", "Q8_0", "Q4_1", "type", "---", "Q8_0", "Q4_1"]
    assert len({len(row) for row in found[:5]}) == len({len(row) for row in found[5:]}) == 1
    assert found[3][1] == "8.5"
    assert found[7][1].startswith("**") and not found[7][2].startswith("**")  # noqa: PT018


def test_errors_of_weights(quality: Any, tmp_path: Path) -> None:
    form = BY_NAME["Q4_0"]
    found = quality.rounded_file(form, tmp_path / "q.gguf")
    with GGUF.open(tmp_path / "q.gguf") as file, GGUF.open(quality.MODEL) as source:
        pairs = [(t, source.tensors[name]) for name, t in file.tensors.items() if len(t.shape) > 1]
        assert {t.format.name for t, _ in pairs} == {"Q4_0"}
        after, before = (
            np.concatenate([t.format.dequantise(f.read(t)).ravel() for t in side])
            for f, side in zip((file, source), zip(*pairs, strict=True), strict=True)
        )
    assert found == pytest.approx(np.std(after - before) / np.std(before), rel=1e-3)
    assert quality.gaussian(form) == pytest.approx(0.083, rel=0.05)


def test_types(quality: Any) -> None:
    found = [form.name for form in quality.types(None)]
    assert found[0] in ("F16", "BF16")
    assert {"Q8_0", "Q4_0", "Q4_K", "Q6_K"} <= set(found)
    assert "F32" not in found
    assert [form.name for form in quality.types("q4_0,Q8_0")] == ["Q4_0", "Q8_0"]
    with pytest.raises(SystemExit, match="cannot round to Q9; there are"):
        quality.types("Q9")
