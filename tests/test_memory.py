"""Contract 2: beside the weights and the KV pages in use there is little else."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import middle_file, run_python

from tinyslm.backends import has_native

pytestmark = [
    pytest.mark.skipif(not has_native(), reason="the C core was not built"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc"),
]
REST = 64 << 20
PEAK = """
import sys
from pathlib import Path
import tinyslm
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
path = Path(sys.argv[1])
"""
TOKENIZER = """
from tinyslm import tokenizer
from tinyslm.gguf import GGUF
with GGUF.open(path) as file:
    tokenizer.load(file.metadata, path).encode("ab " * 300)
print(peak())
"""
# n: tokens of the prompt; pages: how many of these were in use at most
GENERATE = """
model = tinyslm.load(path)
text = "ab cd " * 200
n = len(model.tokenizer.encode(text))
assert 512 <= n < 1400, n
model.generate(text, max_tokens=70, ignore_eos=True)
print(peak(), model.page_bytes * -(-(n + 70) // 64))
"""
LIST = """
model = tinyslm.load(path)
texts = ["ab cd " * 20] * 64
n = len(model.tokenizer.encode(texts[0]))
model.generate(texts, max_tokens=20, ignore_eos=True, top_k=0, top_p=1.0, min_p=0.0)
print(peak(), model.page_bytes * -(-(n + 20) // 64) * 64)
"""
LOGITS = """
model = tinyslm.load(path)
out = model.logits([i % 999 for i in range(900)])
print(peak(), model.page_bytes * -(-900 // 64) + out.nbytes)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return middle_file(tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def without(path: Path) -> int:
    """Bytes of a process that only loads the tokenizer."""
    return int(run_python(PEAK + TOKENIZER, path))


@pytest.mark.parametrize("script", [GENERATE, LIST, LOGITS], ids=["generate", "list", "logits"])
def test_memory_is_about_the_file(path: Path, without: int, script: str) -> None:
    peak, wanted = map(int, run_python(PEAK + script, path).split())
    rest = peak - without - 1.02 * path.stat().st_size - wanted
    assert rest <= REST, f"{rest / 2**20:.1f} MB beside weights and pages"


def test_pages_come_as_they_are_used_and_go(path: Path) -> None:
    """But for KEPT_BYTES of them, here none."""
    script = """
from tinyslm.backends import native
native.KEPT_BYTES = 0
def now():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
model = tinyslm.load(path)
model.generate("ab " * 400, max_tokens=1)
before = now()
stream = model.stream("ab " * 1300, max_tokens=9, ignore_eos=True)
next(stream)
during, n = now(), stream.prompt_tokens
stream.close()
while model._scheduler._thread: pass
print(before, during, now(), model.page_bytes * (n // 64))
"""
    before, during, after, pages = map(int, run_python(PEAK + script, path).split())
    assert during - before == pytest.approx(pages, abs=4 << 20)
    assert after == pytest.approx(before, abs=4 << 20)


HUGE = """
from pathlib import Path
from tinyslm._native import ffi, lib
at = int(ffi.cast("uintptr_t", lib.slm_alloc(8 << 20)))
flags, here = "", False
for line in Path("/proc/self/smaps").read_text().splitlines():
    word = line.split()[0]
    if "-" in word and not word.endswith(":"):
        low, high = (int(part, 16) for part in word.split("-"))
        here = low <= at < high
    elif here and word == "VmFlags:":
        flags = line
print("hg" in flags.split())
"""


@pytest.mark.parametrize(("variable", "asked"), [({}, "True"), ({"TINYSLM_HUGE_PAGES": "0"}, "False")])
def test_huge_pages_have_a_switch(variable: dict[str, str], asked: str) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("a kernel without huge pages")
    assert run_python(HUGE, **variable) == asked + "\n"
