"""tinyslm run: the text that follows a prompt."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING, Any

from . import prompt, source
from .terminal import Output, Status, say, size

if TYPE_CHECKING:
    from ..model import Model, Stream
    from ..scheduler import Piece

HELP = "write the text that follows a prompt"
DESCRIPTION = "Writes the text that follows a prompt to stdout, as it comes, and nothing else."
EXAMPLES = """\
examples:
  tinyslm run "Once upon a time"
  tinyslm run -m hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF "Once upon a time"
  tinyslm run -m model.gguf -n 100 --temp 0 "The capital of France is"     the same text each time
  tinyslm run -m model.gguf -s 7 --stop $'\\n' "Q: How are you? A:"         up to the end of the line
  tinyslm run -m model.gguf -f prompt.txt > answer.txt
  git log -5 | tinyslm run -m model.gguf --stats

exit codes: 0 done (also where the reader of a pipe went away), 1 error, 2 wrong usage, 130 Ctrl-C
"""
UNLIMITED = 1 << 24  # no context is longer


def integer(low: int, *also: int) -> Any:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < low and value not in also:
            raise ArgumentTypeError(f"must be at least {low}{''.join(f', or {a}' for a in also)}, not {value}")
        return value

    return parse


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    source.add_argument(parser)
    prompt.add_arguments(parser)
    add("-n", "--n-predict", "--predict", "--max-tokens", metavar="N", type=integer(1, -1), default=-1, dest="tokens",
        help="most tokens to write (-1: until the model ends the text, or the context is full)")  # fmt: skip
    add("-t", "--threads", metavar="N", type=integer(1), help="threads (the physical cores that this process may use)")
    add("-c", "--ctx-size", "--context", metavar="N", type=integer(0), dest="context",
        help="tokens that prompt and text may have together (0: as many as the model was made for)")  # fmt: skip
    add("--kv", choices=("f16", "q8_0"), default="f16", help="how keys and values are kept: q8_0 takes 9 bits for each "
        "instead of 16, and changes the answer a little (f16)")  # fmt: skip
    add("--stop", metavar="TEXT", action="append", help="end before this text; can be given more than once")
    add("--ignore-eos", action="store_true", help="go on where the model would end the text")
    add("--backend", choices=("native", "numba", "reference"), help="what runs the model (the fastest there is)")
    add("--json", action="store_true", help="one JSON object at the end: text, tokens, why it ended, seed, timings")
    add("--stats", action="store_true",
        help="times, speed and peak memory on stderr; GB/s are the bytes of weights that a token needs, as the file "
        "holds them, times tokens a second")  # fmt: skip
    add_sampling(parser.add_argument_group("sampling"))


def add_sampling(group: Any) -> None:
    def add(*names: str, kind: type = float, help: str) -> None:
        group.add_argument(*names, metavar="N" if kind is int else "X", type=kind, help=help)

    seed = integer(0, -1)
    group.add_argument("-s", "--seed", metavar="N", type=seed, help="same seed, same text (-1: a random one)")
    add("--temp", "--temperature", help="0 takes the most likely token; higher is more varied (0.8)")
    add("--top-k", kind=int, help="draw among the K most likely tokens; 0: all (40)")
    add("--top-p", help="draw among the most likely tokens that together have this probability; 1: all (0.95)")
    add("--min-p", help="leave out tokens below this share of the likeliest one's probability; 0: none (0.05)")
    add("--typical-p", "--typical", help="locally typical sampling; 1: off (1.0)")
    add("--repeat-penalty", help="make tokens of the last 64 less likely; 1: off (1.0)")
    add("--frequency-penalty", help="the same, by how often they came; 0: off (0.0)")
    add("--presence-penalty", help="the same, once they came; 0: off (0.0)")


SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty", "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}  # fmt: skip


def sampling_of(args: Namespace) -> dict[str, Any]:
    """The sampling options that were given. Raises OptionError: what is out of range, before a big file is loaded."""
    from ..sampling import Sampling

    given = {name: value for flag, name in SAMPLING.items() if (value := getattr(args, flag)) is not None}
    given["seed"] = None if args.seed == -1 else args.seed
    Sampling(**given)
    return given


def run(args: Namespace) -> int:
    text = prompt.read(args, args.parser)
    sampling = sampling_of(args)
    from ..model import load

    output, path = Output(), source.find(args.model)
    run = Run()
    with Status("loading") as status:
        model = load(path, threads=args.threads, context=args.context or None, backend=args.backend, kv=args.kv,
                     progress=lambda share: setattr(status, "share", share))  # fmt: skip
    run.load_s = run.lap()
    with model:
        stream = model.stream(text, max_tokens=UNLIMITED if args.tokens == -1 else args.tokens,
                              stop=args.stop or (), ignore_eos=args.ignore_eos, logprobs=False, **sampling)  # fmt: skip
        _write(stream, run, None if args.json else output)
        report = run.report(model, stream)
        if args.json:
            import json

            print(json.dumps(report))
        if args.stats:
            print(_stats(report, model, stream.drawn), file=sys.stderr)
        if stream.finish == "context":
            say(f"the context of {model.context} tokens is full")
    return 0


def _write(stream: Stream, run: Run, output: Output | None) -> None:
    with Status(f"reading the prompt of {stream.prompt_tokens} tokens"):
        piece = next(stream, None)
    run.prompt_s = run.lap()
    while piece is not None:
        run.add(piece)
        if output:
            output.write(piece.text)
        piece = next(stream, None)
    run.generation_s = run.lap()
    if output:
        output.end()


class Run:
    """What a run wrote, and how long it took."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.tokens: list[int] = []
        self._clock = time.perf_counter()
        self.load_s = self.prompt_s = self.generation_s = 0.0

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._clock = self._clock, time.perf_counter()
        return self._clock - before

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece.text)
        self.tokens.append(piece.token)

    def report(self, model: Model, stream: Stream) -> dict[str, Any]:
        """What --json prints. Rates are None where nothing was timed; the first token comes with the prompt's step."""
        steps = stream.drawn - 1
        speed = steps / self.generation_s if steps else None
        return {
            "text": "".join(self.pieces),
            "tokens": [token for token in self.tokens if token not in model.tokenizer.eog],
            "finish": stream.finish,
            "seed": stream.seed,
            "prompt_tokens": stream.prompt_tokens,
            "backend": model.backend,
            "isa": model.isa,
            "threads": model.threads,
            "load_seconds": self.load_s,
            "prompt_seconds": self.prompt_s,
            "prompt_tokens_per_second": stream.prompt_tokens / self.prompt_s,
            "generation_seconds": self.generation_s,
            "generation_tokens_per_second": speed,
            "weight_bytes_per_token": model.step_bytes,
            "weight_bytes_per_second": speed and speed * model.step_bytes,
            "peak_memory_bytes": peak_memory(),
        }


def _stats(report: dict[str, Any], model: Model, drawn: int) -> str:
    """The lines of --stats."""
    on = f"{report['backend']}{', ' + report['isa'] if report['isa'] else ''}, {report['threads']} threads"
    lines = [
        f"load        {report['load_seconds']:.3f} s, {size(model.file_bytes)} ({on})",
        f"prompt      {report['prompt_seconds']:.3f} s, {report['prompt_tokens']} tokens, "
        f"{report['prompt_tokens_per_second']:.1f} tokens/s",
    ]
    if speed := report["generation_tokens_per_second"]:
        lines.append(
            f"generation  {report['generation_seconds']:.3f} s, {drawn - 1} tokens after the first, "
            f"{speed:.1f} tokens/s, {speed * model.step_bytes / 1e9:.2f} GB/s "
            f"({size(model.step_bytes)} of weights a token)"
        )
    if peak := report["peak_memory_bytes"]:
        lines.append(f"memory      {size(peak)} at the peak")
    return "\n".join([*lines, f"seed        {report['seed']}"])


def peak_memory() -> int | None:
    """The most bytes of memory that this process has held at a time; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
