"""tinyslm perplexity: how well a model foresees a text, and how far it is from another."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import interrupt, prompt, source
from .terminal import Status, printable

if TYPE_CHECKING:
    from ..perplexity import Estimate, Perplexity, Scorer, Scores

HELP = "measure how well a model foresees a text, and what quantising has cost"
DESCRIPTION = """\
Measures a model's perplexity on a text: e to the mean of the negative log-likelihood of its tokens, so 1 for a model
that knows each next token for sure. Only numbers of one vocabulary and one text compare.

The text is cut into windows of -c tokens, the first of which gives way to the token that begins a text where the model
has one; of each window the second half is scored. Windows and standard errors are those of llama.cpp's
llama-perplexity, and so are the numbers, up to rounding.

Activations are rounded to int8 where they meet quantised weights; that costs a little too, and is part of what is
measured. --activations f32 leaves it out.

With --base, another file of the same vocabulary, the two are compared token by token: the Kullback-Leibler divergence
from base to model in nats (the mean, and its tail), how often both have the same likeliest token, and the differences
of the probabilities that they give to the text's own tokens. That is the way to see what quantising has cost: as the
text is the same, the errors of a comparison are far smaller than those of the perplexities.\
"""
EXAMPLES = """\
examples:
  tinyslm perplexity -m model-Q4_K_M.gguf -f wiki.test.raw
  tinyslm perplexity -m model-Q4_K_M.gguf -f wiki.test.raw --base model-F16.gguf
  tinyslm perplexity -m q4_0.gguf -f text.txt --base f16.gguf --activations f32 --base-activations f32
  zcat book.txt.gz | tinyslm perplexity -m model.gguf -f - -c 2048 --json

Ctrl-C ends it at once, and prints what was measured by then.
"""
BAR = 20  # characters


def _number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no whole number") from None
    if not 1 <= value <= 1 << 24:
        raise ArgumentTypeError(f"must be a number from 1 to {1 << 24}, not {value}")
    return value


def _block(text: str) -> int:
    """0 for f32, as tinyslm.load has it."""
    return 0 if text == "f32" else _number(text)


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    source.add_argument(parser)
    add("-f", "--file", metavar="FILE", type=Path, required=True,
        help="the text, UTF-8, - for stdin; a newline at its end is left out")  # fmt: skip
    add("--base", metavar="MODEL", help="compare with this model, named as with -m: the unquantised one, say")
    add("-c", "--ctx-size", "--context", metavar="N", type=_number, dest="context",
        help="tokens of a window (512, or what the model was made for, where that is less)")  # fmt: skip
    add("-b", "--batch-size", metavar="N", type=_number, default=512, dest="batch", help="most tokens in a step (512)")
    add("-t", "--threads", metavar="N", type=_number, help="threads (the physical cores that this process may use)")
    add("--backend", choices=("native", "numba", "reference"), help="what runs the model (the fastest there is)")
    rounded = (
        "rounded to int8 in blocks of N where they meet quantised weights; f32, not rounded. On the numba backend, "
    )
    add("--activations", metavar="N", type=_block, help=f"{rounded}with 4 bytes a weight (as the kernels have it)")
    add("--base-activations", metavar="N", type=_block, help="the same of the base: with --base the model itself and "
        "--base-activations f32, what the engine's int8 activations cost is measured by itself")  # fmt: skip
    add("--json", action="store_true", help="one JSON object; a value's standard error is its key and _error")


def run(args: Namespace) -> int:
    text = prompt.from_file(args.file)
    from ..perplexity import check_vocabularies, measure, windows

    if args.base is None and args.base_activations is not None:
        args.parser.error("--base-activations is of --base")
    named = [(args.model, args.activations), (args.base, args.base_activations)][: 1 if args.base is None else 2]
    found = [source.find(name) for name, _ in named]
    model, *bases = [_loaded(path, args, block) for path, (_, block) in zip(found, named, strict=True)]
    for base in bases:
        check_vocabularies(model.tokenizer, base.tokenizer)
    texts = windows(model, text, args.context)
    begin = time.perf_counter()
    about = {"model": str(found[0]), "base": str(found[1]) if bases else None, "text": str(args.file),
             "context": len(texts[0]), "windows_of_text": len(texts), "batch": args.batch,
             "activations": args.activations, "base_activations": args.base_activations,
             "backend": model.model.backend, "isa": model.model.isa, "threads": model.threads}  # fmt: skip
    with Status("measuring") as status:

        def show(scores: Scores) -> None:
            interrupt.farewell = lambda: _say_at_once(_report(scores.result(), about, args.json))
            status.text = _progress(scores, len(texts), time.perf_counter() - begin)
            status.share = scores.windows / len(texts)

        result = measure(model, texts, base=bases[0] if bases else None, progress=show)
    interrupt.farewell = None
    about["seconds"] = time.perf_counter() - begin
    sys.stdout.write(_report(result, about, args.json))
    for scorer in (model, *bases):
        scorer.close()
    return 0


def _loaded(path: Path, args: Namespace, activations: int | None) -> Scorer:
    from ..perplexity import Scorer

    with Status(f"loading {printable(path.name)}") as status:
        return Scorer(path, threads=args.threads, batch=args.batch, backend=args.backend, activations=activations,
                      progress=partial(setattr, status, "share"))  # fmt: skip


def _say_at_once(text: str) -> None:
    with suppress(OSError):
        os.write(1, text.encode())


def _progress(scores: Scores, of: int, seconds: float) -> str:
    done = scores.windows
    bar = "#" * (BAR * done // of)
    ppl = scores.perplexity()
    left = seconds / done * (of - done)
    return f"perplexity {ppl.value:.4f} ± {ppl.error:.4f}  window {done}/{of}, {left:.0f} s left  [{bar:<{BAR}}]"


# ---- output ----


def _report(result: Perplexity, about: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps({**about, **_flat(result)}) + "\n"
    part = "" if result.windows == about["windows_of_text"] else f" of {about['windows_of_text']}; interrupted"
    rows = [("perplexity", _plain(result.perplexity),
             f"{result.tokens} tokens in windows of {about['context']}: {result.windows}{part}")]  # fmt: skip
    if c := result.comparison:
        rows += [
            ("of the base", _plain(c.base_perplexity), ""),
            ("ratio", _plain(c.ratio, 5), f"its logarithm {_plain(c.log_ratio, 5)}"),
            ("difference", _plain(c.difference), f"correlation of the logarithms {100 * c.correlation:.2f}%"),
            ("KL divergence", _plain(c.kl, 6), f"median {c.kl_median:.6f}, 99% {c.kl_99:.6f}, 99.9% {c.kl_999:.6f}, "
             f"max {c.kl_max:.6f}"),
            ("same likeliest token", _percent(c.same_top, 2), ""),
            ("RMS of Δp", _percent(c.rms_probability_difference),
             f"mean {_percent(c.mean_probability_difference)}, max {100 * c.max_probability_difference:.3f}%"),
        ]  # fmt: skip
    return "".join(f"{name:<21} {value:<23} {more}".rstrip() + "\n" for name, value, more in rows)


def _plain(x: Estimate, digits: int = 4) -> str:
    return f"{x.value:.{digits}f} ± {x.error:.{digits}f}"


def _percent(x: Estimate, digits: int = 3) -> str:
    return f"{100 * x.value:.{digits}f} ± {100 * x.error:.{digits}f}%"


def _flat(result: Perplexity) -> dict[str, Any]:
    """The fields of a result and its comparison; an estimate becomes two, a value that is no number None."""
    out: dict[str, Any] = {}
    for name, value in {**vars(result), **(vars(result.comparison) if result.comparison else {})}.items():
        if isinstance(value, tuple):
            out[name], out[f"{name}_error"] = value
        elif name != "comparison":
            out[name] = value
    return {name: value if value == value else None for name, value in out.items()}
