"""The cffi builder of `tinyslm._native`: API mode, limited API, so that one wheel serves every Python from 3.10 on.

No CPU flags: each file in isa/ switches its own instruction set on, and dispatch.c chooses at run time.
"""

import runpy
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = [
    "burst.c", "cpu.c", "dispatch.c", "load.c", "pack.c", "pool.c", "probe.c", "program.c", "quantise.c", "sample.c",
    "turn.c", "walk.c",
]  # fmt: skip
FLAGS = ["-std=gnu11", "-O2", "-fno-fast-math", "-ffp-contract=off", "-pthread", "-fvisibility=hidden", "-Wno-psabi"]

# What Python and C both read is written for C here: the codebooks of the IQ formats.
GRIDS = runpy.run_path(str(HERE.parent / "tinyslm" / "formats" / "grids.py"))["c_source"]()
TARGET = HERE / "formats" / "grids.inc"
if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != GRIDS:
    TARGET.write_text(GRIDS, encoding="utf-8")

ffi = FFI()
ffi.cdef((HERE / "api.h").read_text(encoding="utf-8"))
ffi.set_source(
    "tinyslm._native",
    '#include <stddef.h>\n#include <stdint.h>\n#include "api.h"\n',
    sources=[f"csrc/{name}" for name in SOURCES]
    + sorted(f"csrc/{f.parent.name}/{f.name}" for folder in ("isa", "quantise") for f in (HERE / folder).glob("*.c")),
    include_dirs=["csrc"],
    depends=[
        f"csrc/{f.relative_to(HERE).as_posix()}" for f in sorted(HERE.rglob("*.[hi]*")) if f.suffix in (".h", ".inc")
    ],
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    py_limited_api=True,
)
