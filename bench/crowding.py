"""Decoding on a machine that is shared: alone, beside a busy process, beside a second tinyslm, on too few cores.

    python bench/crowding.py -m weights/tales-q8_0.gguf --rounds 5
    python bench/crowding.py --shape stories260k,smollm2-135m --type q8_0 --checkout . ../other

Each line is the median of rounds that take the scenarios and the checkouts in turn: tokens/s, and processor seconds for
each second that it ran. --checkout compares the code of several working trees, each built in place. The quota is that
of a control group (version 1 or 2), and is left out where this process may make none.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tinyslm.cli import bench as verb

GROUPS = Path("/sys/fs/cgroup")
BUSY = "while True: pass"
# Decodes for so many seconds, then tells tokens and the seconds of wall and processor.
WORKER = """
import sys, time
import numpy as np
from tinyslm import bench
path, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with bench.Bench(path, threads, limits=1 << 20) as model:
    case = bench.Case(0, 16, 64)
    model.prepare(case)
    print("ready", flush=True)
    sys.stdin.readline()
    tokens, start, spent = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        model.repeat(case)
        tokens += case.gen
    print(tokens, time.perf_counter() - start, time.process_time() - spent, flush=True)
"""


class Worker:
    """A process that has loaded the model and waits for `go`."""

    def __init__(self, checkout: Path, model: Path, threads: int, seconds: float) -> None:
        command = [sys.executable, "-c", WORKER, str(model), str(threads), str(seconds)]
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
        )
        assert self.process.stdout
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{checkout}: the engine did not start")

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> tuple[float, float]:
        """Tokens/s, and processor seconds a second."""
        out, _ = self.process.communicate()
        tokens, wall, spent = map(float, out.split())
        return tokens / wall, spent / wall


@contextmanager
def busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for p in processes:
            p.kill()
            p.wait()


@contextmanager
def quota(cpus: float) -> Iterator[Path | None]:
    """The file that puts a process under a quota; None where this process may make no group."""
    version_2 = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if version_2 else GROUPS / "cpu") / f"tinyslm-bench-{os.getpid()}"
    try:
        group.mkdir()
        if version_2:
            (group / "cpu.max").write_text(f"{int(cpus * 100000)} 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text(str(int(cpus * 100000)))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group / "cgroup.procs"
    finally:
        with suppress(OSError):
            group.rmdir()


def on_and_off(pid: int, seconds: float) -> None:
    """Stopped for half of each 20 ms."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.01)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


class Scenarios:
    """Each makes workers by `start`, and returns the first one's tokens/s and processor seconds a second."""

    def __init__(self, start: Callable[[], Worker], seconds: float) -> None:
        self.start, self.seconds = start, seconds

    def run(self, name: str) -> tuple[float, float] | None:
        found: tuple[float, float] | None = getattr(self, name)()
        return found

    def alone(self) -> tuple[float, float]:
        worker = self.start()
        worker.go()
        return worker.result()

    def busy(self) -> tuple[float, float]:
        worker = self.start()
        with busy(1):
            worker.go()
            return worker.result()

    def two(self) -> tuple[float, float]:
        """The sum of both."""
        workers = [self.start(), self.start()]
        for worker in workers:
            worker.go()
        results = [worker.result() for worker in workers]
        return sum(r[0] for r in results), sum(r[1] for r in results)

    def one_core(self) -> tuple[float, float]:
        worker = self.start()
        core = {min(os.sched_getaffinity(0))}
        for thread in os.listdir(f"/proc/{worker.process.pid}/task"):
            os.sched_setaffinity(int(thread), core)
        worker.go()
        return worker.result()

    def quota(self) -> tuple[float, float] | None:
        with quota(1) as members:
            if not members:
                return None
            worker = self.start()
            members.write_text(str(worker.process.pid))
            worker.go()
            return worker.result()

    def stopped(self) -> tuple[float, float]:
        worker = self.start()
        worker.go()
        on_and_off(worker.process.pid, self.seconds * 0.9)
        return worker.result()


NAMES = ("alone", "busy", "two", "one_core", "quota", "stopped")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", nargs="+")
    parser.add_argument("--shape", help="in place of -m, as for tinyslm bench")
    parser.add_argument("--type")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--checkout", nargs="+", type=Path, default=[Path(__file__).parents[1]])
    args = parser.parse_args(argv)
    print("| model | scenario | checkout | tokens/s | processor s/s |\n| --- | --- | --- | ---: | ---: |")
    for find in verb.models(args):
        model = find().resolve()
        for name in args.only:
            found: dict[Path, list[tuple[float, float]]] = {c: [] for c in args.checkout}
            for _ in range(args.rounds):
                for checkout, results in found.items():
                    start = partial(Worker, checkout, model, args.threads, args.seconds)
                    if result := Scenarios(start, args.seconds).run(name):
                        results.append(result)
            for checkout, results in found.items():
                if results:
                    speed, spent = (statistics.median(r[i] for r in results) for i in (0, 1))
                    print(f"| {model.name} | {name} | {checkout} | {speed:.1f} | {spent:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
