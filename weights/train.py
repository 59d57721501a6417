"""Trains the tokenizer and the model on the tales; stops on SIGINT or SIGTERM, and goes on from where it was.

    python weights/train.py --out DIR [--config weights/train.json]

DIR gets tales.model (the tokenizer), checkpoint.pt, log.csv and, at the end, final.pt.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning costs more than it gains where cores are shared
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import sentencepiece
import torch
from net import Muon, Net, Shape
from textdata import IGNORED, Batches, fitting, pad, train_tokenizer
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Config:
    seed: int = 1
    steps: int = 4500
    rows: int = 8
    lr_matrices: float = 0.02
    lr_others: float = 0.003
    warmup: int = 60
    lr_end: float = 0.01  # of the top, at the last step
    heldout: int = 48
    every: int = 250  # steps between measurements and checkpoints
    threads: int = 2
    bfloat16: bool = True


def rate(step: int, c: Config) -> float:
    """Warm-up, then a cosine; as a part of the top rate."""
    if step < c.warmup:
        return (step + 1) / c.warmup
    part = (step - c.warmup) / max(1, c.steps - c.warmup)
    return c.lr_end + (1 - c.lr_end) * 0.5 * (1 + math.cos(math.pi * part))


def loss_of(
    net: Net, inputs: torch.Tensor, targets: torch.Tensor, bfloat16: bool, reduction: str = "mean"
) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = net(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


@torch.no_grad()
def measure(net: Net, sp: sentencepiece.SentencePieceProcessor, seed: int, count: int) -> dict[str, float]:
    """Held-out cross-entropy in float32, each document from its own <s>, beside the bits of the choices."""
    docs = fitting(sp, seed, "heldout", range(count), net.shape.context)
    count = len(docs)
    rows = sorted((ids for ids, _ in docs), key=len)
    nats = 0.0
    for i in range(0, count, 8):
        inputs, targets = pad(rows[i : i + 8])
        nats += loss_of(net, inputs, targets, bfloat16=False, reduction="sum").item()
    tokens = sum(len(row) - 1 for row in rows)
    entropy = sum(bits for _, bits in docs)
    bits = nats / math.log(2)
    return {
        "documents": count,
        "tokens": tokens,
        "bits_per_token": bits / tokens,
        "entropy_per_token": entropy / tokens,
        "bits_per_document": bits / count,
        "entropy_per_document": entropy / count,
        "ratio": bits / entropy,
        "perplexity": math.exp(nats / tokens),
    }


class Run:
    """The state of a training run and its files."""

    def __init__(self, out: Path, shape: Shape, c: Config) -> None:
        self.out, self.shape, self.c = out, shape, c
        torch.manual_seed(c.seed)
        self.net = Net(shape)
        self.matrices = Muon(self.net.matrices(), lr=c.lr_matrices)
        self.others = torch.optim.AdamW(self.net.others(), lr=c.lr_others, betas=(0.9, 0.95), weight_decay=0.0)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.stop = False

    def load(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        saved: dict[str, Any] = torch.load(path)
        self.net.load_state_dict(saved["net"])
        self.matrices.load_state_dict(saved["matrices"])
        self.others.load_state_dict(saved["others"])
        self.step, self.tokens, self.seconds = saved["step"], saved["tokens"], saved["seconds"]
        print(f"goes on from step {self.step}", flush=True)

    def save(self) -> None:
        state = {
            "net": self.net.state_dict(),
            "matrices": self.matrices.state_dict(),
            "others": self.others.state_dict(),
        }
        state |= {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

    def update(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        part = rate(self.step, self.c)
        for optimiser, top in ((self.matrices, self.c.lr_matrices), (self.others, self.c.lr_others)):
            for group in optimiser.param_groups:
                group["lr"] = top * part
        loss = loss_of(self.net, inputs, targets, self.c.bfloat16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.others(), 1.0)
        self.matrices.step()
        self.others.step()
        self.net.zero_grad()
        self.step += 1
        self.tokens += int((targets != IGNORED).sum())
        return loss.item() / math.log(2)

    def note(self, train_bits: float, sp: sentencepiece.SentencePieceProcessor) -> None:
        """One line of the log: the mean training loss since the last one, and the held-out measurement."""
        found = measure(self.net, sp, self.c.seed, self.c.heldout)
        row = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds),
            "train_bits_per_token": round(train_bits, 4),
        }
        row |= {"heldout_bits_per_token": round(found["bits_per_token"], 4), "ratio": round(found["ratio"], 4)}
        path = self.out / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)

    def train(self, sp: sentencepiece.SentencePieceProcessor) -> None:
        batches = Batches(sp, self.c.seed, self.c.rows, self.shape.context)
        losses: list[float] = []
        while self.step < self.c.steps and not self.stop:
            began = time.monotonic()
            losses.append(self.update(*batches(self.step)))
            self.seconds += time.monotonic() - began
            if self.step % self.c.every == 0 or self.step == self.c.steps:
                self.note(sum(losses) / len(losses), sp)
                losses.clear()
                self.save()
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description="trains the tokenizer and the model on the tales")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, the log and the result")
    parser.add_argument("--config", type=Path, default=HERE / "train.json")
    args = parser.parse_args()
    settings = json.loads(args.config.read_text())
    c, shape = Config(**settings["train"]), Shape(**settings["shape"])
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(c.threads)
    tokenizer = args.out / "tales.model"
    if not tokenizer.exists():
        train_tokenizer(tokenizer, c.seed, shape.vocab)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    run = Run(args.out, shape, c)
    run.load()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        run.stop = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    run.train(sp)
    if run.step >= c.steps:
        torch.save({"net": run.net.state_dict(), "shape": asdict(shape), "train": asdict(c)}, args.out / "final.pt")


if __name__ == "__main__":
    main()
