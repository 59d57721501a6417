"""Small random models, and what several tests do with them."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from tinyslm import shapes
from tinyslm.gguf import GGUF
from tinyslm.shapes import Shape

ROOT = Path(__file__).resolve().parents[1]
STORIES = ROOT.parent / "shared" / "data" / "stories260K"
TINY = Shape(layers=2, width=64, heads=4, kv_heads=2, ff=96, vocab=400, context=256, tied=False)
MIDDLE = Shape(layers=16, width=1024, heads=16, kv_heads=8, ff=2816, vocab=32000, context=4096, tied=True)


def tiny_file(folder: Path, shape: Shape = TINY, kind: str = "Q8_0") -> Path:
    path = folder / f"tiny-{kind}.gguf"
    shapes.make(path, shape, kind)
    return path


def middle_file(folder: Path) -> Path:
    """200 million parameters, 135 MB."""
    path = folder / "middle.gguf"
    shapes.make(path, MIDDLE, "Q4_0", "Q6_K")
    return path


def break_embedding(path: Path, token: int) -> None:
    """Make the embedding of one token infinite, in a file of an untied Q8_0 model."""
    with GGUF.open(path) as file:
        tensor = file.tensors["token_embd.weight"]
        at = tensor.offset + token * tensor.row_bytes
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(np.array([np.inf], np.float16).tobytes())


def has_nameless(folder: Path) -> bool:
    """Whether files without a name can be made in a folder: Linux, and not every file system."""
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        return False
    return True


def is_writing(pid: int, folder: Path) -> bool:
    """Whether a process writes a file below a folder: one without a name yet, or with a temporary one."""
    descriptors = Path(f"/proc/{pid}/fd")
    for descriptor in descriptors.iterdir() if descriptors.is_dir() else ():
        with suppress(OSError):
            name = os.readlink(descriptor)
            if name.startswith(f"{folder}/") and name.endswith(" (deleted)"):
                return True
    return any(folder.rglob(".tinyslm-*.tmp"))


def run_python(script: str, *arguments: object, timeout: float = 60, **variables: str) -> str:
    """What a script prints, run by a fresh interpreter; it must end well."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **variables}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
