"""From documents to token ids: the tokenizer, its special pieces, and the batches of a training step."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

import sentencepiece
import torch
from tales import Document, document
from torch import Tensor

BOS, EOS, USER, ASSISTANT = 1, 2, 3, 4
ROLES = {"user": USER, "assistant": ASSISTANT}
POOL = 64  # batches that are drawn and sorted by length together
IGNORED = -100
STEP = 32  # lengths of batches are multiples of it


def train_tokenizer(path: Path, seed: int, vocab: int, documents: int = 4000) -> None:
    """BPE with byte fallback over the paragraphs of the first documents; text is taken as it is."""
    lines: list[str] = []
    for number in range(documents):
        doc = document(number, seed)
        texts = [text for _, text in doc.messages()] if doc.request else [doc.tale]
        lines += [line for text in texts for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=vocab,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        control_symbols=["<|user|>", "<|assistant|>"],
        minloglevel=1,
    )


def encode(sp: sentencepiece.SentencePieceProcessor, doc: Document) -> list[int]:
    """A tale between <s> and </s>; with a request, turns in which each answer ends with </s>."""
    if doc.request is None:
        return [BOS, *sp.encode(doc.tale), EOS]
    ids = [BOS]
    for role, text in doc.messages():
        ids += [ROLES[role], *sp.encode(text)] + [EOS] * (role == "assistant")
    return ids


def fitting(
    sp: sentencepiece.SentencePieceProcessor, seed: int, split: str, numbers: range, context: int
) -> list[tuple[list[int], float]]:
    """Ids and choice bits of the documents that fit the context (all but about one in a thousand)."""
    docs = [document(number, seed, split) for number in numbers]
    rows = [(encode(sp, doc), doc.bits) for doc in docs]
    return [(ids, bits) for ids, bits in rows if len(ids) <= context]


def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of equal shape; padding is ignored in the targets; few different shapes, so few kernels."""
    length = -(-(max(map(len, rows)) - 1) // STEP) * STEP
    inputs = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        inputs[i, : len(row) - 1] = torch.tensor(row[:-1])
        targets[i, : len(row) - 1] = torch.tensor(row[1:])
    return inputs, targets


class Batches:
    """The batch of a step, as a function of the step alone: a run that stops goes on where it was.

    A row is one whole document, as it will be when the model is used; rows of about the same length share a batch,
    which leaves little padding.
    """

    def __init__(self, sp: sentencepiece.SentencePieceProcessor, seed: int, rows: int, context: int) -> None:
        self.sp, self.seed, self.rows, self.context = sp, seed, rows, context
        self.pool = lru_cache(maxsize=1)(self._pool)

    def _pool(self, number: int) -> list[list[list[int]]]:
        size = POOL * self.rows
        numbers = range(number * size, (number + 1) * size)
        docs = [ids for ids, _ in fitting(self.sp, self.seed, "train", numbers, self.context)]
        docs += docs[: size - len(docs)]
        docs.sort(key=len)
        batches = [docs[i : i + self.rows] for i in range(0, size, self.rows)]
        random.Random(f"batches/{self.seed}/{number}").shuffle(batches)
        return batches

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        return pad(self.pool(step // POOL)[step % POOL])
