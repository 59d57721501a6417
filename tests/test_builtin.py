"""The built-in model: where it lies, that it is what runs where no model is named, and that no network is touched."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinyslm
from tinyslm import FileError, builtin, shapes

ROOT = Path(__file__).resolve().parents[1]
# Python's and C's way to a network, both shut; a local socket pair is none.
NO_NETWORK = """\
import socket, sys
def refuse(*_, **__):
    raise AssertionError("the network was touched")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.addaudithook(lambda event, args: refuse() if event.startswith(("socket.connect", "socket.getaddrinfo")) else None)
from tinyslm.cli import main
code = main(sys.argv[1:])
assert not {name for name in sys.modules if name.partition(".")[0] in ("httpx", "httpx2", "requests")}
sys.exit(code)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with small random weights in place of the model, as a checkout has it."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "tinyslm", root / "tinyslm", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (root / "weights").mkdir()
    shapes.make(root / "weights" / builtin.NAME, shapes.Shape(1, 64, 2, 1, 64, 512, 64, True), "Q8_0")
    return root


def tinyslm_(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """A command in a process for which the network is shut."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TINYSLM_"))}
    env = {**kept, "PYTHONPATH": str(tree), "TINYSLM_BACKEND": "reference", "HF_HOME": str(tree / "home")}
    return subprocess.run([sys.executable, "-c", NO_NETWORK, *args], env=env, cwd=tree, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60)  # fmt: skip


def test_run_without_a_model_says_which_and_where_others_are(tree: Path) -> None:
    done = tinyslm_(tree, "run", "-n", "2", "-s", "1", "hello")
    assert done.returncode == 0, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert "built-in model" in lines[0]
    assert "-m hf:" in lines[0]
    named = tinyslm_(tree, "run", "-m", str(tree / "weights" / builtin.NAME), "-n", "2", "-s", "1", "hello")
    assert (named.stdout, named.stderr) == (done.stdout, "")


@pytest.mark.parametrize("args", [["show"], ["tokenize", "hello"]])
def test_other_verbs_take_it_too(tree: Path, args: list[str]) -> None:
    done = tinyslm_(tree, *args)
    assert done.returncode == 0, done
    assert "built-in model" in done.stderr


def test_models_lists_it_first(tree: Path) -> None:
    done = tinyslm_(tree, "models")
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[1].split()[:3] == ["built", "in", "Q8_0"]


def test_load_without_a_path(tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(builtin, "__file__", str(tree / "tinyslm" / "builtin.py"))
    with tinyslm.load(backend="reference") as model:
        assert model.path == tree / "weights" / builtin.NAME
        with pickle.loads(pickle.dumps(model)) as again:
            assert again.path == model.path
    assert capsys.readouterr() == ("", "")


def test_an_install_has_it_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights inside the package win over a folder `weights` that happens to lie beside it."""
    monkeypatch.setattr(builtin, "__file__", str(tmp_path / "site" / "tinyslm" / "builtin.py"))
    with pytest.raises(FileError, match="built-in model is missing"):
        tinyslm.load()
    inside, beside = (tmp_path / "site" / folder / builtin.NAME for folder in ("tinyslm/weights", "weights"))
    for path in (beside, inside):
        path.parent.mkdir(parents=True)
        path.touch()
        assert builtin.path() == path


def test_the_wheel_has_the_weights_and_not_the_scripts(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc", ignore=shutil.ignore_patterns("__pycache__", "_native.c"))
    shutil.copytree(ROOT / "weights", tmp_path / "weights", ignore=shutil.ignore_patterns("*.gguf"))
    shutil.copytree(tree / "weights", tmp_path / "weights", dirs_exist_ok=True)
    shutil.copytree(ROOT / "tinyslm", tmp_path / "tinyslm", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", "lib"], cwd=tmp_path,
                   check=True, capture_output=True, timeout=60)  # fmt: skip
    assert [p.name for p in (tmp_path / "lib/tinyslm/weights").iterdir()] == [builtin.NAME]
    assert (tmp_path / "lib/tinyslm/cli/pull.py").is_file()
    assert not (tmp_path / "lib/weights").exists()


def test_the_checkout_has_the_model() -> None:
    assert builtin.path() == ROOT / "weights" / builtin.NAME
    assert sum(path.stat().st_size for path in (ROOT / "weights").glob("*.gguf")) < 16e6
