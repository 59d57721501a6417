"""Measures the trained model: held-out cross-entropy beside the corpus's entropy, and what it writes by itself.

    python weights/evaluate.py --run DIR [--documents 500] [--samples 200] [--out weights/samples.txt]

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
from typing import Any

import sentencepiece
import torch
from net import Net, Past, Shape
from tales import document
from textdata import ASSISTANT, BOS, EOS, USER, encode
from train import measure

SHOWN = 20
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
    print(json.dumps({"without_slips": broken.count([]) / len(broken)} | Counter(kind for b in broken for kind in b)))
    print(json.dumps(follow(net, sp, c["seed"], args.documents), indent=2))
    if args.out:
        args.out.write_text("\n\n".join(texts[:SHOWN]) + "\n")


if __name__ == "__main__":
    main()
