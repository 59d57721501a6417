"""Measures the trained model: held-out cross-entropy beside the corpus's entropy, and what it writes by itself.

    python weights/evaluate.py --run DIR [--documents 500] [--samples 200] [--out weights/samples.txt]

A sampled tale counts as new when it stands in no document that the training read, sentence for sentence, and a sentence
as new when the training read it nowhere (few are: all come from one grammar). A tale slips where its end does not fit
its beginning, as far as rules can tell.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from net import Net, Past, Shape
from tales import document
from textdata import ASSISTANT, BOS, EOS, USER
from train import measure

SHOWN = 20


@torch.no_grad()
def sample(net: Net, start: list[int], count: int, seed: int, temperature: float = 1.0) -> list[list[int]]:
    """`count` continuations of `start` until </s>, one turn of text each; the rows run together."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([start] * count)
    ended = torch.zeros(count, dtype=torch.bool)
    past, fresh = Past(), ids
    while ids.shape[1] < net.shape.context and not ended.all():
        logits = net(fresh, past)[:, -1]
        logits[:, [USER, ASSISTANT]] = -torch.inf
        drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
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


def slips(text: str) -> list[str]:
    """Breaks of the tales' own rules: the hero, the treat and the friend of the beginning are not those of the end."""
    found = []
    end = re.search(r"And (\w+) and (\w+) (?:were|stayed) friends", text)
    if not end:
        return ["no ending"]
    if text.count(end[1]) < 6 or f"{end[1]} wanted to" not in text:
        found.append("hero")
    if f"named {end[2]} " not in text:
        found.append("friend")
    treat = re.search(r"happier than ([a-z ]+)\.", text)
    if not treat or text.count(treat[1]) < 2:
        found.append("treat")
    she, he = re.search(r"\b[Ss]he\b", text), re.search(r"\b[Hh]e\b", text)
    if she and he:
        found.append("pronoun")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="measures the trained model")
    parser.add_argument("--run", type=Path, required=True, help="the folder that train.py filled")
    parser.add_argument("--documents", type=int, default=500, help="held-out documents")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--out", type=Path, help="file for the first twenty samples")
    args = parser.parse_args()
    path = args.run / "final.pt"
    saved: dict[str, Any] = torch.load(path if path.exists() else args.run / "checkpoint.pt")
    settings = json.loads((Path(__file__).resolve().parent / "train.json").read_text())
    c = settings["train"]
    net = Net(Shape(**settings["shape"]))
    net.load_state_dict(saved["net"])
    sp = sentencepiece.SentencePieceProcessor(model_file=str(args.run / "tales.model"))
    print(json.dumps(measure(net, sp, c["seed"], args.documents), indent=2))
    texts: list[str] = []
    for begun in range(0, args.samples, SHOWN):
        count = min(SHOWN, args.samples - begun)
        texts += [text_of(sp, ids) for ids in sample(net, [BOS], count, seed=begun)]
    print(json.dumps(novelty(texts, c["seed"], c["steps"] * c["rows"]), indent=2))
    broken = [slips(text) for text in texts]
    print(
        json.dumps({"tales_without_slips": sum(not b for b in broken) / len(broken), "slips": [b for b in broken if b]})
    )
    if args.out:
        args.out.write_text("\n\n".join(texts[:SHOWN]) + "\n")


if __name__ == "__main__":
    main()
