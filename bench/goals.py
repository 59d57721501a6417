"""The goals that tinyslm is held to, and the rows of `compare.py --goals` that measure them.

A share is of the machine's limit, a ratio of llama.cpp's fastest variant. `others` is a ratio to another row of ours.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import around

from tinyslm.bench import Case

PROMPT, GENERATE = Case(512, 0), Case(0, 128)
DEEP_PROMPT, DEEP, FOUR = Case(512, 0, 4096), Case(0, 128, 4096), Case(0, 128, 0, 4)
ROOM = 64 << 20  # beside the weights and the KV pages
MEMORY = 1.02


@dataclass(frozen=True)
class Goal:
    """Of a random-weight file in a real model's shape and mix of types: what is to be reached at least."""

    shape: str
    mix: str
    case: Case
    share: float | None = None
    ratio: float | None = None
    others: float | None = None  # times the tokens/s of the same test with one sequence

    @property
    def name(self) -> str:
        return f"{self.shape} {self.mix} {self.case.name}"


def _each(shape: str, case: Case, share: float, ratios: dict[str, float]) -> list[Goal]:
    return [Goal(shape, mix, case, share, ratio) for mix, ratio in ratios.items()]


BIG, MIDDLE, SMALL = "llama-3.2-1b", "qwen2.5-0.5b", "smollm2-135m"
GOALS = [
    Goal(BIG, "q4_0", PROMPT, 0.68, 2.3),
    Goal(BIG, "q4_0", GENERATE, 0.92, 1.0),
    Goal(BIG, "q4_0", FOUR, others=3.0),
    Goal(BIG, "q4_0", DEEP_PROMPT, ratio=3.0),
    Goal(BIG, "q4_0", DEEP, ratio=1.6),
    Goal(BIG, "q8_0", PROMPT, 0.68, 3.0),
    Goal(BIG, "q8_0", GENERATE, 0.92, 1.0),
    Goal(BIG, "q4_k_m", PROMPT, 0.62, 1.4),
    Goal(BIG, "q4_k_m", GENERATE, 0.92, 1.0),
    *_each(MIDDLE, PROMPT, 0.55, {"q4_0": 2.2, "q4_k_m": 2.2, "q8_0": 2.2}),
    *_each(MIDDLE, GENERATE, 0.90, {"q4_0": 1.1, "q4_k_m": 1.3, "q8_0": 1.3}),
    *_each(SMALL, PROMPT, 0.45, {"q4_0": 2.2, "q4_k_m": 2.2, "q8_0": 2.2}),
    *_each(SMALL, GENERATE, 0.80, {"q4_0": 1.5, "q4_k_m": 1.5, "q8_0": 1.5}),
]
START = Goal(BIG, "q4_0", Case(16, 1), ratio=0.7)  # at most: of the seconds to the first token


def chosen(only: Iterable[str] | None) -> list[Goal]:
    """The goals whose name holds every word of one of `only`; all without. By model, as files are loaded once."""
    wanted = [part.lower().split() for part in only or [""]]
    found = [g for g in GOALS if any(all(word in g.name.split() or word in g.name for word in w) for w in wanted)]
    return sorted(found, key=lambda g: (g.shape, g.mix))


def starts(only: Iterable[str] | None) -> bool:
    """Whether cold start and peak memory are wanted: all are, or `only` names "start"."""
    return not only or any("start" in part for part in only)


def judged(goal: Goal, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with its goals, and whether all are met."""
    met = []
    if goal.share is not None:
        met.append(row["share"] >= goal.share)
    if goal.ratio is not None:
        met.append(row["ratio"] >= goal.ratio)
    one = [r["ours"] for r in rows if r["model"] == row["model"] and r["test"] == GENERATE.name]
    times = row["ours"] / one[0] if goal.others is not None and one else None
    if goal.others is not None:
        met.append(times is not None and times >= goal.others)
    return {**row, "goal_share": goal.share, "goal_ratio": goal.ratio, "goal_times_one": goal.others,
            "times_one": times, "met": all(met)}  # fmt: skip


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def table(rows: Sequence[dict[str, Any]], start: dict[str, Any] | None) -> str:
    """A Markdown table of what was reached, and of what was to be."""
    lines = ["| model | test | share | goal | ratio | goal | met |", "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for r in rows:
        share, ratio = r["goal_share"], r["goal_ratio"]
        reached, wanted = f"{r['ratio']:.2f}", "" if ratio is None else f"{ratio:.1f}"
        if r["goal_times_one"] is not None:
            reached = "" if r["times_one"] is None else f"{r['times_one']:.2f} × one"
            wanted = f"{r['goal_times_one']:.1f} × one"
        floor = "" if share is None else f"{share:.0%}"
        lines.append(
            f"| {r['model']} | {r['test']} | {r['share']:.0%} | {floor} | {reached} | {wanted} | {_yes(r['met'])} |"
        )
    if start:
        lines.append(
            f"| {start['model']} | cold start to first token | {start['ours']:.2f} s of {start['theirs']:.2f} s | | "
            f"{start['ratio']:.2f} | ≤ {START.ratio} | {_yes(start['met'])} |"
        )
        ours, most, theirs = (start[key] / 1e6 for key in ("peak", "limit", "their_peak"))
        lines.append(
            f"| {start['model']} | peak memory | {ours:.0f} MB | ≤ {most:.0f} MB | llama.cpp {theirs:.0f} MB | | "
            f"{_yes(ours <= most)} |"
        )
    return "\n".join(lines) + "\n"


def cold(path: Path, threads: int, llama: str, rounds: int) -> dict[str, Any]:
    """A prompt of 16 tokens answered by one, each time in a new process, the engines in turn; peak memory of each."""
    ours, theirs = list[dict[str, float]](), list[dict[str, float]]()
    for warm in range(rounds + 1):
        a = around.started(sys.executable, around.OURS, path, threads, around.PROMPT)
        b = around.started(llama, around.THEIRS, path, threads, around.PROMPT)
        if warm:  # the first brought the file into the page cache
            ours.append(a)
            theirs.append(b)
    base = around.started(sys.executable, around.BASE, path)["peak"]
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True))
    assert START.ratio is not None
    return {
        "model": path.name, "ratio": ratio, "met": ratio <= START.ratio,
        "ours": statistics.median(a["seconds"] for a in ours), "samples": [a["seconds"] for a in ours],
        "theirs": statistics.median(b["seconds"] for b in theirs), "their_samples": [b["seconds"] for b in theirs],
        "peak": max(a["peak"] for a in ours), "their_peak": max(b["peak"] for b in theirs),
        "limit": base + MEMORY * os.path.getsize(path) + ours[0]["pages"] + ROOM,
    }  # fmt: skip
