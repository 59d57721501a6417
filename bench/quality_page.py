"""The page of what tensor types cost: three tables by type, made from what was measured, read again, written."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from tinyslm.backends.base import ACTIVATION_BLOCK
from tinyslm.formats import FORMATS
from tinyslm.quantise.rows import SEARCHED

NUMBERS = ("F32", "F64", "I8", "I16", "I32", "I64")  # not what models are quantised to
TYPES = [  # the largest first
    form.name
    for form in sorted(FORMATS.values(), key=lambda f: (-f.bytes / f.block, f.name))
    if form.name not in NUMBERS
]
READ_ONLY = [name for name in TYPES if name not in (*SEARCHED, "F16", "BF16", "Q8_0")]  # nothing here rounds to these
BLOCKS = (32, 64, 128, 256)  # lengths of activations' blocks that are tried for each type
ROUNDING, SPEED = "## Of that, rounding activations to int8", "## Speed"
COSTS = ["type", "bits a weight", "error, Gaussian %", "error, tales %", "KL × 1000", "99%", "same top %", "perplexity",
         "engine: KL × 1000", "perplexity", "ratio to F16"]  # fmt: skip
Table = dict[str, list[str]]  # by type: the cells of its row, but for the first


@dataclass
class Page:
    """`about`: what was read, and the base model's perplexity; `machine`: what the speeds are of. A paragraph each."""

    about: str
    costs: Table = field(default_factory=dict)
    rounding: Table = field(default_factory=dict)
    machine: str = ""
    speed: Table = field(default_factory=dict)

    def text(self, prompt: int, generated: int) -> str:
        """Markdown; speeds are of so many tokens. What was not measured has a dash."""
        foreign = [name for name in READ_ONLY if name in self.costs]
        by_ggml = (
            f" {', '.join(foreign)}, which tinyslm only reads, were rounded by llama.cpp's ggml." if foreign else ""
        )
        lines = [
            "# What quantising costs", "",
            *paragraph(self.about),
            *paragraph(
                "Made by `bench/quality.py`, all at once or, with `--types`, some rows of it. All matrices are of the "
                "row's type, rounded without an importance matrix, by tinyslm's own quantisers." + by_ggml
            ),
            *paragraph(
                "Errors of weights are root mean squares, in percent of that of the weights. *KL* to the first "
                "*perplexity* have float32 activations, so they show what quantising the weights costs; *engine* is "
                "all of it, with activations rounded to int8 as the kernels do it. ± is one standard error, over "
                "tokens."
            ),
            *table(COSTS, TYPES, self.costs),
            ROUNDING, "",
            *paragraph(
                "KL × 1000 from the same weights with float32 activations, by the number of activations that share a "
                "scale; **bold** is the length that the kernels of the type have (of NVFP4: 16). *Engine* is the "
                "engine itself, and *share* its divergence beside that of quantising the weights."
            ),
            *table(["type", *map(str, BLOCKS), "engine", "share"],
                   [name for name in TYPES if name in ACTIVATION_BLOCK], self.rounding),
        ]  # fmt: skip
        if self.machine:
            head = ["type", f"prompt of {prompt}", f"generating {generated}"]
            lines += [SPEED, "", *paragraph(self.machine), *table(head, TYPES, self.speed)]
        return "\n".join(lines[:-1]) + "\n"


def read(text: str) -> Page:
    """A page that was written before."""
    costs, _, rest = text.partition(ROUNDING)
    rounding, _, speed = rest.partition(SPEED)
    about, machine = (" ".join(part.split("\n\n")[1].split()) if part else "" for part in (costs, speed))
    return Page(about, _rows(costs), _rows(rounding), machine, _rows(speed))


def _rows(text: str) -> Table:
    """Rows in which something was measured."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {name: cells for name, *cells in lines[2:] if set(cells) != {"-"}}


def table(head: Sequence[str], names: Sequence[str], rows: Table) -> list[str]:
    rule = ["---", *["--:"] * (len(head) - 1)]
    body = [[name, *rows.get(name, ["-"] * (len(head) - 1))] for name in names]
    return [*(f"| {' | '.join(cells)} |" for cells in (head, rule, *body)), ""]


def paragraph(text: str) -> list[str]:
    return [*textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False), ""]
