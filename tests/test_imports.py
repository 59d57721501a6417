"""Imports point one way, heavy libraries wait until they are used, and only the command line prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import ROOT, run_python, tiny_file

from tinyslm.backends import has_native

PACKAGE = ROOT / "tinyslm"
# From the top down: a module imports from its own layer (where that is a package) and from those below, never upwards.
LAYERS = [
    ("__main__",), ("cli",), ("__init__",), ("convert",), ("bench", "conversation", "perplexity", "quantise"),
    ("model",), ("chat", "scheduler", "builtin"), ("engine", "hub"), ("tokenizer", "sampler", "kvcache"),
    ("sampling",), ("backends",), ("models", "program"), ("lowered",), ("ops",), ("config",), ("shapes",),
    ("random_blocks",),
    ("mixes", "gguf"), ("gguf_writer",), ("gguf_header",), ("formats",), ("errors",),
]  # fmt: skip
HEIGHT = {name: -i for i, names in enumerate(LAYERS) for name in names}
ONE = {"hub_download": "hub"}  # parts in two files
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The module or sub-package of tinyslm that a file belongs to."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return ONE.get(name, name)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """What a file imports of the package, by the same names, and in which line."""
    package = ["tinyslm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[list[str]] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        names = [[ONE.get(word, word) for word in name] for name in names]
        for name in names:
            if name[0] == "tinyslm" and name[1:] != ["__version__"]:  # that is there before anything is imported
                known = len(name) > 1 and (name[1] in HEIGHT or name[1] == "_native")
                yield (name[1] if known else "__init__"), node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(path)
    assert own in HEIGHT, f"a new module: give {own} its place in LAYERS"
    for name, line in imported(path):
        below = name == "_native" or HEIGHT[name] < HEIGHT[own]
        assert below or name == own, f"{path.name}:{line}: {own} imports {name}, which is not below it"


def test_what_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "backends").mkdir()
    file = tmp_path / "backends" / "x.py"
    file.write_text(
        "from . import base\nfrom .. import ops\nfrom ..gguf import GGUF\nimport tinyslm.config\n"
        "from tinyslm.models import llama\ndef f():\n    from .. import load\nimport numpy\nfrom .._native import ffi\n"
    )
    assert [name for name, _ in imported(file)] == [
        "backends", "ops", "gguf", "config", "models", "_native", "__init__",
    ]  # fmt: skip


@pytest.mark.parametrize("path", [p for p in FILES if part(p) != "cli"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        called = node.func if isinstance(node, ast.Call) else None
        assert not (isinstance(called, ast.Name) and called.id == "print"), f"{path.name}:{called.lineno}"
        named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys"
        assert not (named and node.attr in ("stdout", "stderr")), f"{path.name}:{node.lineno}"


HEAVY = ("numpy", "numba", "sentencepiece", "tokenizers", "google.protobuf", "cffi", "tinyslm._native", "jinja2")


def test_importing_the_package_is_light() -> None:
    script = f"import sys, tinyslm; tinyslm.__version__; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(script) == "[]\n"


@pytest.mark.skipif(not has_native(), reason="the C core was not built")
def test_the_native_backend_needs_no_compiler(tmp_path: Path) -> None:
    script = """
import sys, tinyslm
with tinyslm.load(sys.argv[1]) as model:
    model.generate("hello", max_tokens=2)
    print(model.backend, [m for m in ("numba", "llvmlite", "sentencepiece", "gguf") if m in sys.modules])
"""
    assert run_python(script, tiny_file(tmp_path)) == "native []\n"
