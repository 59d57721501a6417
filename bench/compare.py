"""tinyslm and llama.cpp on the same files, in one interleaved run, beside the machine's limits.

    python bench/compare.py --shape llama-3.2-1b --type q4_0,q8_0 --llama-python ../venv-llama/bin/python --out 1b
    python bench/compare.py --goals --llama-python ../venv-llama/bin/python --out goals

Each round measures tinyslm, then llama.cpp in each of its variants, and the limits before and after every one of them.
Before that, both engines get the same short prompt, and the logits that follow must agree. Written are OUT.md, OUT.json
and, with matplotlib, OUT.png, after each row. Ctrl-C ends the run; of the row at hand the rounds that are done count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import goals
import numpy as np
from goals import Goal

import tinyslm
from tinyslm import bench
from tinyslm.backends.threads import default_threads
from tinyslm.bench import Case, Probe, Result
from tinyslm.cli import bench as verb

OURS = "tinyslm"
INTERRUPTED = 130
SETTLE = 0.05  # seconds for the threads of whoever ran before to stop spinning
SLOW = 1.15  # --goals leaves variants of llama.cpp out that take so many times as long as its fastest
PROMPT = 24  # tokens that both engines must agree on
TOP = 10


class Llama:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, settings: dict[str, Any]) -> None:
        command = [python, str(Path(__file__).with_name("llama_worker.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        hello = self.ask(settings)
        self.variants, self.about = list(hello["variants"]), str(hello["about"])
        self.ended = False  # by Ctrl-C: the answer that was waited for is still to come

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("llama.cpp ended early")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def repeat(self, variant: str, case: Case, warm: bool = False) -> int:
        asked = {"prompt": case.prompt, "gen": case.gen, "depth": case.depth, "sequences": case.sequences}
        return int(self.ask({**asked, "variant": variant, "warm": warm})["ns"])

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """How alike two rows of logits are. Activations are rounded differently, so equal they are not."""
    top, other = (set(np.argsort(x)[-TOP:].tolist()) for x in (ours, theirs))
    return {
        "correlation": float(np.corrcoef(ours, theirs)[0, 1]),
        "same_of_top_10": len(top & other),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "best_apart": float(max(ours.max() - ours[theirs.argmax()], theirs.max() - theirs[ours.argmax()])),
    }


def agree(found: dict[str, float]) -> bool:
    """Each engine's best token is nearly the other's best, and the rest goes along."""
    return found["correlation"] > 0.98 and found["same_of_top_10"] >= TOP // 2 and found["best_apart"] < 0.5


def check(model: bench.Bench, llama: Llama) -> dict[str, dict[str, float]]:
    ids = np.random.default_rng(1).integers(0, model.model.vocab_size, PROMPT).tolist()
    ours = model.model.logits(ids, last=1)[0]
    found = {}
    for variant in llama.variants:
        found[variant] = agreement(ours, np.array(llama.ask({"ids": ids, "variant": variant})["logits"], np.float32))
        if not agree(found[variant]):
            raise SystemExit(f"{model.path}: the logits of the two engines differ ({variant}): {found[variant]}")
    return found


def measure(model: bench.Bench, llama: Llama, case: Case, rounds: int, slow: float = np.inf) -> dict[str, Result]:
    """Rounds of all engines in turn; every repetition has a probe on either side.

    Variants that took more than `slow` times as long as the fastest, before the first round, take no part. Ctrl-C ends
    the rounds early; before the first is done, KeyboardInterrupt.
    """
    model.prepare(case)
    warm = {variant: llama.repeat(variant, case, warm=True) for variant in llama.variants}
    kept = [v for v in llama.variants if warm[v] <= slow * min(warm.values())]
    engines: dict[str, Callable[[], int]] = {OURS: lambda: model.repeat(case)}
    engines |= {v: partial(llama.repeat, v, case) for v in kept}
    taken: dict[str, list[int]] = {name: [] for name in engines}
    beside: dict[str, list[Probe]] = {name: [] for name in engines}
    try:
        for _ in range(rounds):
            round_taken, probes = list[int](), [model.limits.run()]
            for repeat in engines.values():
                time.sleep(SETTLE)
                round_taken.append(repeat())
                time.sleep(SETTLE)
                probes.append(model.limits.run())
            for name, ns, (before, after) in zip(engines, round_taken, pairwise(probes), strict=True):
                taken[name].append(ns)
                beside[name].append(bench.mean(before, after))
    except KeyboardInterrupt:
        if not taken[OURS] or len({len(t) for t in taken.values()}) > 1:
            raise
        llama.ended = True
    return {name: Result(case, taken[name], beside[name], model.work(case)) for name in engines}


def row(path: Path, results: dict[str, Result]) -> dict[str, Any]:
    """One line of the report; `ratio` is against the variant of llama.cpp that was fastest here."""
    speeds = {name: statistics.median(r.speeds) for name, r in results.items()}
    best = max((v for v in speeds if v != OURS), key=speeds.__getitem__)
    rivals = [a / b for a, b in zip(results[OURS].speeds, results[best].speeds, strict=True)]
    probes = [limit for r in results.values() for limit in r.limits]
    case, work = results[OURS].case, results[OURS].work
    return {
        "model": path.name, "test": case.name, "ours": speeds[OURS], "best": speeds[best], "best_variant": best,
        "ratio": statistics.median(rivals), "share": results[OURS].share, "best_share": results[best].share,
        "limit": statistics.median(probes) / work * case.tokens, "probe": statistics.median(probes) / 1e9,
        "engines": {name: r.record() for name, r in results.items()},
    }  # fmt: skip


# ---- reports ----


def markdown(about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{about['cpu']}, {about['threads']} threads, {about['rounds']} rounds, {about['date']}; tinyslm "
        f"{about['tinyslm']} ({about['isa']}), llama.cpp at its fastest variant of each row. Medians; shares and the "
        "ratio are medians of pairs.",
        "",
        "| model | test | tinyslm t/s | llama.cpp t/s | ratio | tinyslm, share | llama.cpp, share | limit | variant |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in rows:
        unit = "GOPS" if r["test"].startswith("pp") else "GB/s"
        lines.append(
            f"| {r['model']} | {r['test']} | {r['ours']:.1f} | {r['best']:.1f} | {r['ratio']:.2f} | {r['share']:.0%} | "
            f"{r['best_share']:.0%} | {r['probe']:.1f} {unit} | {r['best_variant']} |"
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """A panel a test, a group of bars a model, a line where the limit is; False without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    tests = list(dict.fromkeys(r["test"] for r in rows))
    height = max(2.5, 0.9 * len(rows) / len(tests) + 1.5)
    figure, panels = pyplot.subplots(
        len(tests), 1, squeeze=False, figsize=(9, height * len(tests)), layout="constrained"
    )
    for panel, test in zip(panels[:, 0], tests, strict=True):
        here = [r for r in rows if r["test"] == test]
        at = np.arange(len(here))
        for shift, key, label in ((-0.2, "ours", "tinyslm"), (0.2, "best", "llama.cpp, fastest variant")):
            bars = panel.barh(at + shift, [r[key] for r in here], 0.38, label=label)
            panel.bar_label(bars, fmt="%.1f", padding=3)
        limits = [r["limit"] for r in here]
        panel.vlines(limits, at - 0.42, at + 0.42, colors="black", linestyles="dashed", label="limit of the machine")
        panel.set(yticks=at, yticklabels=[r["model"] for r in here], title=test, xlabel="tokens/s")
        panel.invert_yaxis()
        panel.set_xlim(0, 1.15 * max(*limits, *(r["ours"] for r in here), *(r["best"] for r in here)))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def write(
    out: Path, about: dict[str, Any], rows: Sequence[dict[str, Any]], start: dict[str, Any] | None = None
) -> None:
    """All reports; called after each row, so that an interrupted run leaves what it has."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(about, rows)
    if "goals" in about:
        text += "\n" + goals.table(rows, start)
    out.with_name(out.name + ".md").write_text(text, encoding="utf-8")
    everything = {**about, "rows": rows, "start": start}
    out.with_name(out.name + ".json").write_text(json.dumps(everything, indent=1), encoding="utf-8")
    if rows and not plot(out.with_name(out.name + ".png"), rows):
        print("no plot: matplotlib is not here (pip install 'tinyslm[bench]')", file=sys.stderr)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verb.add_arguments(parser)
    parser.set_defaults(repetitions=9)
    parser.add_argument("--llama-python", metavar="PYTHON", default=sys.executable,
                        help="the interpreter that has llama-cpp-python (this one)")  # fmt: skip
    parser.add_argument("--n-batch", type=int, default=2048, help="of llama.cpp (2048, as llama-bench)")
    parser.add_argument("--n-ubatch", type=int, default=512, help="of llama.cpp (512, as llama-bench)")
    parser.add_argument("--out", type=Path, default=Path("compare"), help="name of the reports, without its ending")
    parser.add_argument("--goals", action="store_true", help="the files and tests of goals.py, held to its goals")
    parser.add_argument("--only", metavar="WORDS", nargs="+", help="of --goals: rows whose name has these words, as "
                        "'1b q4_0 tg128' or 'start'")  # fmt: skip
    args = parser.parse_args(argv)
    if not (args.model or args.shape or args.goals):
        parser.error("-m, --shape or --goals: one of the three")
    if args.only and not goals.chosen(args.only) and not goals.starts(args.only):
        parser.error(f"--only {' '.join(args.only)}: no goal has such a name")
    return args


def plan(args: argparse.Namespace) -> list[tuple[Callable[[], Path], list[Case | Goal]]]:
    """What brings each model's file, and its tests."""
    if not args.goals:
        cases: list[Case | Goal] = list(bench.cases(args.prompt, args.gen, args.depth, args.batch))
        return [(find, cases) for find in verb.models(args)]
    of: dict[tuple[str, str], list[Case | Goal]] = {}
    for goal in goals.chosen(args.only):
        of.setdefault((goal.shape, goal.mix), []).append(goal)
    return [(file(args, *key), tests) for key, tests in of.items()]


def file(args: argparse.Namespace, shape: str, mix: str) -> Callable[[], Path]:
    return verb.models(argparse.Namespace(**{**vars(args), "shape": shape, "type": mix}))[0]


def run(args: argparse.Namespace, path: Path, tests: list[Case | Goal], about: dict[str, Any], rows: list[Any]) -> bool:
    """One model's rows; False where Ctrl-C ended them."""
    cases = [t.case if isinstance(t, Goal) else t for t in tests]
    with bench.Bench(path, args.threads) as model:
        settings = {
            "model": str(path), "threads": model.model.threads, "n_batch": args.n_batch, "n_ubatch": args.n_ubatch,
            "context": 256 + max(c.depth + max(c.prompt, c.gen) for c in cases),
            "sequences": max(c.sequences for c in cases),
        }  # fmt: skip
        with Llama(args.llama_python, settings) as llama:
            about |= {"threads": model.model.threads, "isa": model.model.isa, "llama.cpp": llama.about}
            about["agreement"][path.name] = check(model, llama)
            for test, case in zip(tests, cases, strict=True):
                found = row(path, measure(model, llama, case, args.repetitions, SLOW if args.goals else np.inf))
                rows.append(goals.judged(test, found, rows) if isinstance(test, Goal) else found)
                write(args.out, about, rows)
                print(markdown(about, rows[-1:]).splitlines()[-1], flush=True)
                if llama.ended:
                    return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {
        "cpu": verb.cpu(), "system": platform.platform(), "date": time.strftime("%Y-%m-%d"), "threads": args.threads,
        "isa": None, "tinyslm": tinyslm.__version__, "rounds": args.repetitions, "agreement": {},
    }  # fmt: skip
    if args.goals:
        about["goals"] = True
    try:
        for find, tests in plan(args):
            if not run(args, find(), tests, about, rows):
                return INTERRUPTED
        if args.goals and goals.starts(args.only):
            path = file(args, goals.START.shape, goals.START.mix)()
            start = goals.cold(path, args.threads or default_threads(), args.llama_python, args.repetitions)
            write(args.out, about, rows, start)
            print(goals.table([], start).splitlines()[-2], flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
