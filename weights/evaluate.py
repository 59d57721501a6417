"""Measures the trained model: held-out cross-entropy beside the corpus's entropy, and what it writes by itself.

    PYTHONPATH=. python weights/evaluate.py [--run DIR] [--documents 500] [--samples 200] [--out weights/samples.txt]

Without --run it measures the shipped F16 file, in PyTorch and float32 as it does a run's weights.

A sampled tale counts as new when it stands in no document that the training read, sentence for sentence, and a sentence
as new when it stands in no tale that the training read. A tale slips where its end does not fit
its beginning, as far as rules can tell.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import sentencepiece
import torch
from net import Net, Past, Shape
from slips import slips
from tales import document
from textdata import ASSISTANT, BOS, EOS, USER, encode
from train import measure

import tinyslm
from tinyslm.gguf import GGUF

HERE = Path(__file__).resolve().parent
SHOWN = 20
BEGUN = "Once upon a time"
ANSWER, OPENING = 40, 60  # tokens to wait for


@torch.no_grad()
def sample(net: Net, start: list[int], count: int, seed: int, greedy: int = 0) -> list[list[int]]:
    """`count` continuations of `start` until </s>, one turn of text each; the rows run together.

    Drawn from the whole distribution; with `greedy`, the likeliest tokens up to that length in all.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([start] * count)
    ended = torch.zeros(count, dtype=torch.bool)
    past, fresh = Past(), ids
    while ids.shape[1] < (greedy or net.shape.context) and not ended.all():
        logits = net(fresh, past)[:, -1]
        logits[:, [USER, ASSISTANT]] = -torch.inf
        drawn = (
            logits.argmax(-1, keepdim=True) if greedy else torch.multinomial(logits.softmax(-1), 1, generator=generator)
        )
        drawn[ended] = EOS
        ended |= drawn[:, 0] == EOS
        ids, fresh = torch.cat((ids, drawn), 1), drawn
    return [row[len(start) :] for row in ids.tolist()]


def text_of(sp: sentencepiece.SentencePieceProcessor, ids: list[int]) -> str:
    return str(sp.decode(ids[: ids.index(EOS)] if EOS in ids else ids))


def sentences(text: str) -> list[str]:
    return re.findall(r'\S[^.?!\n]*[.?!]+"?', text)


def novelty(texts: list[str], seed: int, documents: int) -> dict[str, float]:
    """Shares of tales and of sentences that the training did not read."""
    tales: set[str] = set()
    known: set[str] = set()
    for number in range(documents):
        doc = document(number, seed)
        tales.add(doc.tale)
        known.update(sentences(doc.tale))
    told = [sentence for text in texts for sentence in sentences(text)]
    return {
        "sampled": len(texts),
        "new_tales": sum(text not in tales for text in texts) / len(texts),
        "new_sentences": sum(sentence not in known for sentence in told) / len(told),
    }


def kept(texts: list[str]) -> dict[str, float]:
    """The share of tales that keep all rules, and how many break which."""
    broken = [slips(text) for text in texts]
    return {"without_slips": broken.count([]) / len(broken)} | Counter(kind for b in broken for kind in b)


def follow(net: Net, sp: sentencepiece.SentencePieceProcessor, seed: int, documents: int) -> dict[str, int]:
    """Held-out questions answered word for word, and requests for a kind of animal that get it; likeliest tokens."""
    found = {"questions": 0, "right_answers": 0, "kinds_asked_for": 0, "kinds_told_of": 0}
    for number in range(documents):
        doc = document(number, seed, "heldout")
        ids = encode(sp, doc)
        starts = [at + 1 for at, token in enumerate(ids) if token == ASSISTANT]
        for start, (_, answer) in zip(starts[1:], doc.talk, strict=False):
            if start < net.shape.context - ANSWER:
                said = text_of(sp, sample(net, ids[:start], 1, seed=0, greedy=start + ANSWER)[0])
                found["questions"] += 1
                found["right_answers"] += said.strip() == answer
        if named := re.fullmatch(r"Tell me a tale about an? (\w+)\.", doc.request or ""):
            said = text_of(sp, sample(net, ids[: starts[0]], 1, seed=0, greedy=starts[0] + OPENING)[0])
            found["kinds_asked_for"] += 1
            found["kinds_told_of"] += f" {named[1]} " in said
    return found


def weights_of(run: Path | None) -> dict[str, torch.Tensor]:
    """Of a finished run, of one that is still going on, or of the file."""
    if run:
        path = run / "final.pt"
        saved: dict[str, torch.Tensor] = torch.load(path if path.exists() else run / "checkpoint.pt")["net"]
        return saved
    with GGUF.open(HERE / "tales-f16.gguf") as file:
        return {name: torch.tensor(tensor.format.dequantise(file.read(tensor)).reshape(tensor.shape[::-1]))
                for name, tensor in file.tensors.items()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="measures the trained model")
    parser.add_argument("--run", type=Path, help="a folder that train.py filled; else the shipped F16 file")
    parser.add_argument("--documents", type=int, default=500, help="held-out documents")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--out", type=Path, help="file for the first twenty samples")
    args = parser.parse_args()
    settings = json.loads((HERE / "train.json").read_text())
    c = settings["train"]
    net = Net(Shape(**settings["shape"]))
    net.load_state_dict(weights_of(args.run))
    sp = sentencepiece.SentencePieceProcessor(model_file=str((args.run or HERE) / "tales.model"))
    print(json.dumps(measure(net, sp, c["seed"], args.documents), indent=2))
    texts: list[str] = []
    for begun in range(0, args.samples, SHOWN):
        count = min(SHOWN, args.samples - begun)
        texts += [text_of(sp, ids) for ids in sample(net, [BOS], count, seed=begun)]
    print(json.dumps(novelty(texts, c["seed"], c["steps"] * c["rows"]), indent=2))
    print(json.dumps(kept(texts)))
    if not args.run:
        with tinyslm.load() as model:
            told = [BEGUN + model.generate(BEGUN, max_tokens=600, seed=seed) for seed in range(args.samples)]
        print(json.dumps({"as_tinyslm_run": kept(told)}))
    print(json.dumps(follow(net, sp, c["seed"], args.documents), indent=2))
    if args.out:
        args.out.write_text("\n\n".join(texts[:SHOWN]) + "\n")


if __name__ == "__main__":
    main()
