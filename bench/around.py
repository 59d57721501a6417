"""What happens around a step: starting, loading, and the Python between two tokens.

    python bench/around.py -m model.gguf
    python bench/around.py --shape llama-3.2-1b --type q4_0 --llama ../venv-llama/bin/python

start   a process that answers a prompt of 16 tokens with one, the file in the page cache: wall seconds to that token,
        beside llama.cpp in processes of its own, taken in turn, each after one that has touched more memory
load    tinyslm.load of that process, beside what the same threads take to read the file's tensors into fresh memory
token   per token, what does not pass in C: the loop in Python with the token's text, of a stream and of a whole answer;
        and sampling, where each token is drawn by itself (most are drawn in C, several steps together)
import  `import tinyslm`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tinyslm._native import ffi, lib

import tinyslm
from tinyslm import sampler, scheduler
from tinyslm.backends import native
from tinyslm.backends.threads import default_threads
from tinyslm.cli import bench as verb

PROMPT = "a b c d e f g h i j k l m n o"  # 16 tokens at most, in the made-up vocabularies too
SLICE = 2 << 20
# Not getrusage's peak: that of a new process begins with its parent's.
PEAK = """
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) << 10
"""
OURS = (
    PEAK
    + """
import json, sys, time
begun = time.time()
import tinyslm
model = tinyslm.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.time()
model.generate(sys.argv[3], max_tokens=1, temperature=0, ignore_eos=True)
end = time.time()
print(json.dumps({"end": end, "load": loaded - begun, "peak": peak(), "pages": model.page_bytes}), flush=True)
"""
)
THEIRS = (
    PEAK
    + """
import json, sys, time
from llama_cpp import Llama
model = Llama(sys.argv[1], n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), n_ctx=512, verbose=False)
model.create_completion(sys.argv[3], max_tokens=1, temperature=0)
end = time.time()
print(json.dumps({"end": end, "peak": peak()}), flush=True)
"""
)
# What a process takes that only has the tokenizer.
BASE = (
    PEAK
    + """
import json, sys, time
import tinyslm
from tinyslm import tokenizer
from tinyslm.gguf import GGUF
with GGUF.open(sys.argv[1]) as file:
    tokenizer.load(file.metadata, sys.argv[1])
print(json.dumps({"end": time.time(), "peak": peak()}), flush=True)
"""
)
# Memory that a virtual machine has not had for a while comes from the host at 0.5 to 10 GB/s; what a process had just
# before is still the guest's. Without this, whichever engine came first paid for both.
TOUCH = "import sys, numpy; numpy.empty(int(sys.argv[1]), numpy.uint8)[::4096] = 1"
IMPORT = "import time; t = time.perf_counter(); import tinyslm; print(time.perf_counter() - t)"


def started(python: str, script: str, path: Path, *args: object) -> dict[str, float]:
    """What the script tells of the file, and the seconds from before its process to its `end`."""
    subprocess.run([sys.executable, "-c", TOUCH, str(3 * path.stat().st_size)], check=True)
    begun = time.time()
    out = subprocess.run(
        [python, "-c", script, *map(str, (path, *args))], check=True, capture_output=True, text=True
    ).stdout
    told: dict[str, float] = json.loads(out)
    return {**told, "seconds": told["end"] - begun}


def floor(path: Path, threads: int) -> float:
    """Seconds to read the file by slices into as much fresh memory: each byte read once and written once."""
    size = path.stat().st_size
    memory = lib.slm_alloc(size)
    target = ffi.buffer(memory, size)
    with path.open("rb", buffering=0) as file:

        def read(at: int) -> None:
            os.preadv(file.fileno(), [memoryview(target)[at : at + SLICE]], at)

        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(0, size, SLICE)))
        seconds = time.perf_counter() - start
    lib.slm_free(memory, size)
    return seconds


class Timed:
    """C's library; notes when each call that steps began and ended, and of how many steps it was."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def slm_step(self, *args: Any) -> int:
        begun = time.perf_counter_ns()
        error: int = lib.slm_step(*args)
        self.calls.append((begun, time.perf_counter_ns(), 1))
        return error

    def slm_burst(self, *args: Any) -> int:
        begun = time.perf_counter_ns()
        done: int = lib.slm_burst(*args)
        self.calls.append((begun, time.perf_counter_ns(), max(done, 1)))
        return done


def per_token(model: tinyslm.Model, tokens: int = 300) -> tuple[float, float, float]:
    """Microseconds a token between calls that step, sampling apart: of a stream, of a whole answer; and sampling's.

    Medians over the calls, so that what else the machine does leaves them alone. Where several tokens are drawn in one
    call, how long sampling takes shows once they are not.
    """
    drawing = sampler.Sampler.draw
    loops, sampling = list[float](), list[int]()
    for patience, whole in ((scheduler.PATIENCE, False), (scheduler.PATIENCE, True), (0, False)):
        timed, drawn = Timed(), list[tuple[int, int]]()

        def draw(self: sampler.Sampler, *args: Any, drawn: list[tuple[int, int]] = drawn) -> tuple[int, float | None]:
            begun = time.perf_counter_ns()
            found = drawing(self, *args)
            drawn.append((begun, time.perf_counter_ns() - begun))
            return found

        with (
            patch.object(native, "lib", timed), patch.object(sampler.Sampler, "draw", draw),
            patch.object(scheduler, "PATIENCE", patience),
        ):  # fmt: skip
            options: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "seed": 1}
            if whole:
                model.generate(PROMPT, **options)
            else:
                deque(model.stream(PROMPT, logprobs=False, **options), maxlen=0)
        if patience:
            between = [
                (begin - end - sum(t for at, t in drawn if end < at < begin)) / steps
                for (_, end, steps), (begin, _, _) in pairwise(timed.calls)
            ]
            loops.append(statistics.median(between) / 1e3)
        else:
            sampling = [t for _, t in drawn]
    return loops[0], loops[1], statistics.median(sampling) / 1e3


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", nargs="+")
    parser.add_argument("--shape", help="in place of -m, as for tinyslm bench")
    parser.add_argument("--type")
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("-r", "--rounds", type=int, default=9)
    parser.add_argument("--llama", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    args = parser.parse_args(argv)
    light = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(args.rounds)]
    print(f"import  {statistics.median(light):.3f} s")
    for find in verb.models(args):
        path = find().resolve()
        ours, theirs, floors = list[dict[str, float]](), list[dict[str, float]](), list[float]()
        started(sys.executable, OURS, path, args.threads, PROMPT)  # the file comes into the page cache
        for _ in range(args.rounds):
            ours.append(started(sys.executable, OURS, path, args.threads, PROMPT))
            floors.append(floor(path, args.threads))
            if args.llama:
                theirs.append(started(args.llama, THEIRS, path, args.threads, PROMPT))
        seconds = statistics.median(o["seconds"] for o in ours)
        print(f"{path.name}\nstart   {seconds:.3f} s", end="")
        if theirs:
            ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True))
            print(f", llama.cpp {statistics.median(t['seconds'] for t in theirs):.3f} s, ratio {ratio:.2f}", end="")
        loads = statistics.median(o["load"] for o in ours)
        print(f"\nload    {loads:.3f} s, the file read into fresh memory in {statistics.median(floors):.3f} s")
        with tinyslm.load(path, threads=args.threads, backend="native") as model:
            found = [per_token(model) for _ in range(args.rounds)]
            stream, whole, sampling = (statistics.median(f[i] for f in found) for i in range(3))
            print(
                f"token   {stream:.1f} µs in the loop of a stream, {whole:.1f} µs of a whole answer, "
                f"{sampling:.1f} µs sampling from {model.vocab_size}", flush=True,
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
