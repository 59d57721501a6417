"""Training in small, where PyTorch is: it learns, it goes on where it was, and its file says the same here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyslm

torch = pytest.importorskip("torch")
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
SHAPE = {"vocab": 600, "width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 96, "context": 2048}
TRAIN = {"steps": 6, "rows": 2, "warmup": 2, "heldout": 2, "every": 3, "threads": 1}


def train(out: Path, config: Path, steps: int) -> list[str]:
    config.write_text(json.dumps({"train": TRAIN | {"steps": steps}, "shape": SHAPE}))
    command = [sys.executable, str(WEIGHTS / "train.py"), "--out", str(out), "--config", str(config)]
    subprocess.run(command, check=True, capture_output=True)
    return (out / "log.csv").read_text().splitlines()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    train(root / "run", root / "config.json", 6)
    return root / "run"


def test_it_learns_and_keeps_a_log(run: Path) -> None:
    header, *rows = (run / "log.csv").read_text().splitlines()
    assert header.startswith("step,tokens,seconds,train_bits_per_token,heldout_bits_per_token,ratio")
    assert [row.split(",")[0] for row in rows] == ["3", "6"]
    assert float(rows[1].split(",")[4]) < float(rows[0].split(",")[4])


def test_it_goes_on_where_it_was(run: Path, tmp_path: Path) -> None:
    """The rate depends on the number of steps in all, so the stop is made by a checkpoint after step 3 of 6."""
    sys.path.insert(0, str(WEIGHTS))
    from net import Shape
    from sentencepiece import SentencePieceProcessor
    from train import Config, Run

    (tmp_path / "tales.model").write_bytes((run / "tales.model").read_bytes())
    sp = SentencePieceProcessor(model_file=str(tmp_path / "tales.model"))
    c = Config(**TRAIN)
    first = Run(tmp_path, Shape(**SHAPE), c)
    first.note = lambda bits, sp: setattr(first, "stop", True)  # type: ignore[method-assign]
    first.train(sp)
    assert first.step == 3
    second = Run(tmp_path, Shape(**SHAPE), c)
    second.load()
    second.train(sp)
    assert second.step == 6
    whole = torch.load(run / "final.pt")["net"]
    for name, tensor in second.net.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)


def test_the_file_says_what_the_network_says(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(WEIGHTS / "export.py"), "--run", str(run), "--out", str(tmp_path)]
    environment = {"PYTHONPATH": str(WEIGHTS.parent)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    sys.path.insert(0, str(WEIGHTS))
    from net import Net, Shape

    net = Net(Shape(**SHAPE))
    net.load_state_dict(torch.load(run / "final.pt")["net"])
    with tinyslm.load(tmp_path / "tales-f16.gguf") as model:
        ids = model.tokenizer.encode("Once upon a time, in a green valley")
        with torch.no_grad():
            expected = net(torch.tensor([ids]))[0].numpy()
        np.testing.assert_allclose(model.logits(ids), expected, atol=2e-3 * np.abs(expected).max())
    assert (tmp_path / "tales-q8_0.gguf").stat().st_size < (tmp_path / "tales-f16.gguf").stat().st_size
