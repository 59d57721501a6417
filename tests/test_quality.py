"""The table of what types cost: its measurements on a tale or two, and that it is a table."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import ROOT

from tinyslm import shapes
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
    page = quality.Page(quality.about(own), {"Q6_K": ["6.562", *["1 ± 0"] * 9]})
    for r in rows:
        quality.put(page, r)
    text = page.text(512, 64)
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    second = next(i for i, row in enumerate(found) if row[0] == "type" and i)
    cells = {row[0]: row[1:] for row in found[2:second]}
    assert list(cells) == quality.quality_page.TYPES
    assert cells["Q8_0"][0] == "8.5"
    assert {name for name, row in cells.items() if row != ["-"] * 10} == {"F16", "Q8_0", "Q6_K", "Q4_1"}
    cells = {row[0]: row[1:] for row in found[second + 2 :]}
    assert "F16" not in cells
    assert {name for name, row in cells.items() if row != ["-"] * 6} == {"Q8_0", "Q4_1"}
    assert cells["Q8_0"][0].startswith("**") and not cells["Q8_0"][1].startswith("**")  # noqa: PT018
    assert quality.quality_page.read(text) == page


def test_rows_are_replaced_in_a_page_that_was_measured_alike(quality: Any, tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    args = argparse.Namespace(types="Q4_0", out=out, speed=None)
    with Scorer(quality.MODEL, threads=1, activations=0) as model:
        base = measure(model, quality.heldout(model, 1), first=0)
    assert quality.page_of(base, args) == quality.Page(quality.about(base))
    page = quality.Page(quality.about(base), {"Q4_0": ["1"] * 10, "IQ1_S": ["2"] * 10}, {"Q4_0": ["3"] * 6},
                        quality.machine("smollm2-135m"), {"Q4_0": ["4"] * 2})  # fmt: skip
    out.write_text(page.text(512, 64))
    assert "IQ1_S, which tinyslm only reads, were rounded by llama.cpp's ggml" in " ".join(out.read_text().split())
    assert quality.page_of(base, args) == page
    args.speed = "llama-3.2-1b"
    with pytest.raises(SystemExit, match="of another shape or machine"):
        quality.page_of(base, args)
    args.types = None  # the whole page
    assert quality.page_of(base, args) == quality.Page(quality.about(base), machine=quality.machine("llama-3.2-1b"))
    args.types, args.speed = "Q4_0", None
    out.write_text(page.text(512, 64).replace("1 held-out", "2 held-out"))
    with pytest.raises(SystemExit, match="was measured otherwise"):
        quality.page_of(base, args)


def test_the_page_that_is_there(quality: Any) -> None:
    text = (ROOT / "bench" / "QUALITY.md").read_text()
    page = quality.quality_page.read(text)
    assert page.text(quality.PROMPT, quality.GENERATED) == text
    assert list(page.costs) == list(page.speed) == quality.quality_page.TYPES


def test_speeds(quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tokens on a small shape: in the mix of a type, or with all matrices of it where there is none."""
    monkeypatch.setattr(quality, "PROMPT", 4)
    monkeypatch.setattr(quality, "GENERATED", 2)
    monkeypatch.setattr(quality, "REPETITIONS", 1)
    monkeypatch.setitem(shapes.SHAPES, "tiny", shapes.Shape(2, 256, 4, 2, 256, 400, 256, True))
    page = quality.Page("about", machine="speeds")
    for name in ("Q4_K", "IQ2_S"):
        page.speed[name] = quality.fast(quality.speed(BY_NAME[name], "tiny", tmp_path, 1))
    assert list(tmp_path.iterdir()) == []
    lines = [line for line in page.text(4, 2).splitlines() if line[:1] == "|"][-len(quality.quality_page.TYPES) - 2 :]
    assert lines[0] == "| type | prompt of 4 | generating 2 |"
    assert next(line for line in lines if "%" in line).startswith("| Q4_K | ")
    assert len([line for line in lines if line.endswith("| - | - |")]) == len(quality.quality_page.TYPES) - 2


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
