"""What each tensor type costs in quality, and what rounding activations to int8 adds, on the tales model.

    python bench/quality.py --ggml libggml-base.so --speed llama-3.2-1b --out bench/QUALITY.md    # the whole page
    python bench/quality.py --types Q4_0,Q4_K --out bench/QUALITY.md    # two rows of it, without their speed

Every matrix of the model is rounded to the type, and held-out tales are read by the result, each from its own BOS,
every token scored. With float32 activations the divergence from the F16 file is the cost of quantising; the divergence
of the same weights with rounded activations from that is the cost of the activations, for each length of block that
could share a scale, and in the engine itself.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import quality_page
from quality_page import BLOCKS, Page

from tinyslm import OptionError, bench, shapes
from tinyslm.backends.base import ACTIVATION_BLOCK
from tinyslm.cli.bench import cpu
from tinyslm.formats import BY_NAME, Format
from tinyslm.gguf import GGUF, TensorData, write
from tinyslm.mixes import MIXES
from tinyslm.perplexity import Comparison, Estimate, Perplexity, Scorer, measure
from tinyslm.quantise.rows import quantise_rows

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "weights" / "tales-f16.gguf"
GAUSSIAN = 1 << 20  # weights
PROMPT, GENERATED = 512, 64  # tokens whose speed is measured
REPETITIONS = 3


class Recorded:
    """A model's logits over some texts, to be compared with more than once."""

    def __init__(self, model: Scorer, texts: Sequence[np.ndarray]) -> None:
        self.tokenizer = model.tokenizer
        self._logits = {t.tobytes(): [b.copy() for b in model.logits(t[:-1], 0)] for t in texts}
        self._of = {t[:-1].tobytes(): t.tobytes() for t in texts}

    def logits(self, ids: np.ndarray, first: int) -> Iterator[np.ndarray]:
        assert first == 0
        return iter(self._logits[self._of[ids.tobytes()]])


@dataclass(frozen=True)
class Row:
    """What was measured of a type. `rounded`: by length of the activations' blocks."""

    format: Format
    gaussian: float
    weights: float
    quantised: Perplexity
    engine: Perplexity
    rounded: dict[int, Comparison]
    rounded_in_engine: Comparison
    speed: list[bench.Result]


GGML: list[ctypes.CDLL] = []  # with --ggml, which rounds to the types that tinyslm only reads


def rounded_rows(form: Format, rows: np.ndarray) -> np.ndarray:
    """Rows (n, k) in a type: uint8 (n, bytes). OptionError where nobody here rounds to it."""
    try:
        return quantise_rows(form.name, rows)
    except OptionError:
        if not GGML:
            raise
    n, k = rows.shape
    rows, even = np.ascontiguousarray(rows, np.float32), np.ones(k, np.float32)  # each column counts alike
    out = np.zeros((n, k // form.block * form.bytes), np.uint8)
    at = [ctypes.c_void_p(array.ctypes.data) for array in (rows, out, even)]
    sizes = [ctypes.c_int64(size) for size in (0, n, k)]
    GGML[0].ggml_quantize_chunk(ctypes.c_int(form.id), *at[:2], *sizes, at[2])
    return out


def types(wanted: str | None) -> list[Format]:
    """All that weights can be rounded to here, the largest first; or those named."""
    found = {}
    for name in quality_page.TYPES:
        with suppress(OptionError):
            rounded_rows(BY_NAME[name], np.zeros((1, BY_NAME[name].block), np.float32))
            found[name] = BY_NAME[name]
    names = wanted.upper().split(",") if wanted else list(found)
    if unknown := [name for name in names if name not in found]:
        sys.exit(f"cannot round to {', '.join(unknown)}; there are {', '.join(found)} (--ggml has more)")
    return [found[name] for name in names]


def heldout(model: Scorer, documents: int) -> list[np.ndarray]:
    """Tales that the model was not trained on, as it was trained: BOS, the tale, EOS."""
    sys.path.insert(0, str(ROOT / "weights"))
    from tales import document

    tokenizer, texts = model.tokenizer, list[np.ndarray]()
    for number in range(documents):
        tale = document(number, split="heldout", chat=False).tale
        texts.append(np.array([*tokenizer.encode(tale, bos=True), tokenizer.eos], np.int32))
    return [ids for ids in texts if len(ids) <= model.model.context]


def rounded_file(form: Format, path: Path) -> float:
    """Write the model with all matrices in a type; the error, relative to the weights, both as root mean squares."""
    error = total = 0.0
    tensors = []
    with GGUF.open(MODEL) as file:
        for t in file.tensors.values():
            data, kind = file.read(t), t.format
            if len(t.shape) > 1:
                kind, values = form, t.format.dequantise(data)
                data = rounded_rows(form, values)
                error += float(np.square(form.dequantise(data) - values, dtype=np.float64).sum())
                total += float(np.square(values, dtype=np.float64).sum())
            tensors.append(TensorData(t.name, t.shape, kind.id, data))
        write(path, file.metadata, tensors)
    return (error / total) ** 0.5


def gaussian(form: Format) -> float:
    values = np.random.default_rng(0).standard_normal((GAUSSIAN // 256, 256), np.float32)
    return float(np.sqrt(np.square(form.dequantise(rounded_rows(form, values)) - values).mean()))


def speed(form: Format, shape: str, folder: Path, threads: int | None) -> list[bench.Result]:
    """Prompt and generation on random weights in the type's mix; where it has none, all matrices are of the type."""
    path = folder / f"{shape}-{form.name}.gguf"
    mix = next((name for name in (f"{form.name}_S", form.name) if name in MIXES), None)
    if mix:
        shapes.Mixed(shape, mix).write(path)
    else:
        shapes.make(path, shapes.SHAPES[shape], form.name)
    try:
        with bench.Bench(path, threads) as b:
            return [b.run(case, REPETITIONS) for case in (bench.Case(PROMPT, 0), bench.Case(0, GENERATED))]
    finally:
        path.unlink()


def row(form: Format, texts: list[np.ndarray], base: Recorded, args: argparse.Namespace, folder: Path) -> Row:
    path = folder / f"{form.name}.gguf"
    weights = rounded_file(form, path)
    with Scorer(path, threads=args.threads, activations=0) as model:
        exact = Recorded(model, texts)
        quantised = measure(model, texts, first=0, base=base)
    with Scorer(path, threads=args.threads) as model:
        engine = measure(model, texts, first=0, base=base)
        in_engine = measure(model, texts, first=0, base=exact).comparison
    rounded = {}
    for block in BLOCKS if form.name in ACTIVATION_BLOCK else ():
        with Scorer(path, threads=args.threads, activations=block) as model:
            rounded[block] = measure(model, texts, first=0, base=exact).comparison
    path.unlink()
    measured = speed(form, args.speed, folder, args.threads) if args.speed else []
    return Row(form, gaussian(form), weights, quantised, engine, rounded, in_engine, measured)


# ---- output ----


def pm(x: Estimate, scale: float = 1, digits: int = 2) -> str:
    return f"{scale * x.value:.{digits}f} ± {scale * x.error:.{digits}f}"


def costs(r: Row) -> list[str]:
    c, all_ = r.quantised.comparison, r.engine.comparison
    return [
        f"{8 * r.format.bytes / r.format.block:.4g}",
        f"{100 * r.gaussian:.3g}", f"{100 * r.weights:.3g}",
        pm(c.kl, 1e3, 3), f"{1e3 * c.kl_99:.2f}", pm(c.same_top, 100), pm(r.quantised.perplexity, 1, 4),
        pm(all_.kl, 1e3, 3), pm(r.engine.perplexity, 1, 4), pm(all_.ratio, 1, 5),
    ]  # fmt: skip


def activations(r: Row) -> list[str]:
    """The length that the kernels have is set off."""
    own = ACTIVATION_BLOCK[r.format.name]
    cells = {n: pm(c.kl, 1e3, 3) for n, c in r.rounded.items()}
    share = r.rounded_in_engine.kl.value / r.quantised.comparison.kl.value
    return [*(f"**{v}**" if n == own else v for n, v in cells.items()),
            pm(r.rounded_in_engine.kl, 1e3, 3), f"{share:.3f}"]  # fmt: skip


def fast(results: list[bench.Result]) -> list[str]:
    return [f"{x.record()['avg_ts']:.0f} ± {x.record()['stddev_ts']:.0f} ({x.share:.0%})" for x in results]


def about(base: Perplexity) -> str:
    return (
        f"On `{MODEL.name}`: {base.windows} held-out tales, {base.tokens} tokens, each tale read from its own BOS. The "
        f"F16 file with float32 activations has a perplexity of {pm(base.perplexity, 1, 4)}; divergences, in nats, are "
        "from its probabilities to those of the row."
    )


def machine(shape: str) -> str:
    return (
        f"Tokens a second and, in brackets, the share of the machine's limit probed beside it (see README.md): random "
        f"weights in the shape of {shape}, in llama.cpp's mix for the type (`_S` where there are several), or all "
        f"matrices of the type where it has none; {cpu()}, {REPETITIONS} repetitions (`--speed {shape}`)."
    )


def page_of(base: Perplexity, args: argparse.Namespace) -> Page:
    """The page that rows go into: with --types, the one that is there, which must have been measured alike."""
    page = Page(about(base), machine=machine(args.speed) if args.speed else "")
    if not (args.types and args.out and args.out.exists()):
        return page
    old = quality_page.read(args.out.read_text())
    if old.about != page.about:
        sys.exit(
            f"{args.out} was measured otherwise, so no rows of it can be replaced: name another file, or measure all"
        )
    if args.speed and old.machine and old.machine != page.machine:
        sys.exit(f"the speeds of {args.out} are of another shape or machine: name another file, or leave out --speed")
    old.machine = old.machine or page.machine
    return old


def put(page: Page, r: Row) -> None:
    name = r.format.name
    page.costs[name] = costs(r)
    if r.rounded:
        page.rounding[name] = activations(r)
    if r.speed:
        page.speed[name] = fast(r.speed)


def main() -> None:
    parser = argparse.ArgumentParser(description="what each tensor type costs in quality")
    parser.add_argument("--types", help="names with commas between (all that weights can be rounded to); other rows of "
                        "--out stay as they are")  # fmt: skip
    parser.add_argument("--documents", type=int, default=16, help="held-out tales (16)")
    parser.add_argument("--ggml", metavar="LIBRARY", help="libggml-base.so, for the types that tinyslm only reads")
    parser.add_argument("--speed", metavar="SHAPE", choices=shapes.SHAPES, help="measure the speed in this shape too")
    parser.add_argument("-t", "--threads", type=int, help="threads (the physical cores that this process may use)")
    parser.add_argument("--out", type=Path, help="file for the tables (stdout)")
    args = parser.parse_args()
    if args.ggml:
        GGML.append(ctypes.CDLL(args.ggml))
    forms = types(args.types)
    with Scorer(MODEL, threads=args.threads, activations=0) as model:
        texts = heldout(model, args.documents)
        base, own = Recorded(model, texts), measure(model, texts, first=0)
    page = page_of(own, args)
    with tempfile.TemporaryDirectory() as folder:
        for form in forms:
            begin = time.perf_counter()
            put(page, row(form, texts, base, args, Path(folder)))
            print(f"{form.name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
            if args.out:  # after each row, so that an interrupted run leaves what it has
                args.out.write_text(page.text(PROMPT, GENERATED))
    if not args.out:
        print(page.text(PROMPT, GENERATED), end="")


if __name__ == "__main__":
    main()
