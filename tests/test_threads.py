"""How many threads: the environment, affinity, siblings, and quotas of both versions of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small import run_python, tiny_file

from tinyslm.backends import has_native, threads
from tinyslm.errors import OptionError

NONE = 1 << 10


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def quota(folder: Path, membership: str, files: dict[str, str]) -> int:
    (folder / "membership").write_text(membership)
    return threads.quota(folder / "membership", tree(folder / "cgroup", files))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, NONE),
        ({"a/b/cpu.max": "max 100000\n"}, NONE),
        ({"a/b/cpu.max": "200000 100000\n"}, 2),
        ({"a/b/cpu.max": "150000 100000\n"}, 2),  # rounded up
        ({"a/b/cpu.max": "10000 100000\n"}, 1),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),  # a parent's holds too
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "700000 100000\n"}, 3),
        ({"cpu.max": "100000 50000\n"}, 2),  # in a container: the root is one's own
        ({"c/cpu.max": "100000 100000\n"}, NONE),
        ({"a/b/cpu.max": "nonsense\n"}, NONE),
        ({"a/b/cpu.max": ""}, NONE),
        ({"a/b/cpu.max": "100000 0\n"}, NONE),
    ],
)
def test_quota_of_version_2(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert quota(tmp_path, "0::/a/b\n", files) == expected


@pytest.mark.parametrize(
    ("most", "period", "expected"),
    [("-1", "100000", NONE), ("250000", "100000", 3), ("50000", "100000", 1), ("0", "1", NONE)],
)
def test_quota_of_version_1(tmp_path: Path, most: str, period: str, expected: int) -> None:
    membership = "5:memory:/m\n4:cpu,cpuacct:/a\n3:cpuset:/a\n1:name=systemd:/s\n"
    files = {"cpu/a/cpu.cfs_quota_us": most + "\n", "cpu/a/cpu.cfs_period_us": period + "\n"}
    assert quota(tmp_path, membership, files) == expected
    outside = {"cpu/cpu.cfs_quota_us": most, "cpu/cpu.cfs_period_us": period}
    assert quota(tmp_path, "4:cpuacct,cpu:/of/the/host\n", outside) == expected


def test_quota_of_both_versions_at_once(tmp_path: Path) -> None:
    files = {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000", "u/cpu.max": "300000 100000"}
    assert quota(tmp_path, "2:cpu:/a\n0::/u\n", files) == 3


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert threads.quota(tmp_path / "none", tmp_path) == NONE
    assert quota(tmp_path, "", {}) == NONE
    assert quota(tmp_path, "what is this\n\n0::/a\n", {"a/cpu.max": "200000 100000"}) == 2


def test_siblings_count_once(tmp_path: Path) -> None:
    lists = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}
    root = tree(tmp_path, {f"cpu{i}/topology/thread_siblings_list": text for i, text in lists.items()})
    assert threads.physical_cores({0, 1, 4, 5}, root) == 2
    assert threads.physical_cores({0, 4}, root) == 1
    assert threads.physical_cores({0, 5}, root) == 2
    assert threads.physical_cores({0, 4, 8, 9}, root) == 3  # of which nothing is known: each its own


def test_default_is_the_least_of_cores_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYSLM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4, 5}, raising=False)
    monkeypatch.setattr(threads, "physical_cores", lambda cpus: len(cpus))
    for limit, expected in [(NONE, 6), (4, 4), (1, 1)]:
        monkeypatch.setattr(threads, "quota", lambda membership, root, limit=limit: limit)
        assert threads.default_threads() == expected


def test_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity")
    monkeypatch.delenv("TINYSLM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert threads.default_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSLM_THREADS", "7")
    assert threads.default_threads() == 7
    for wrong in ("0", "-1", "1.5", "two", "1025", " 3"):
        monkeypatch.setenv("TINYSLM_THREADS", wrong)
        with pytest.raises(OptionError, match="TINYSLM_THREADS"):
            threads.default_threads()
    monkeypatch.setenv("TINYSLM_THREADS", "")
    assert threads.default_threads() >= 1


# Steps on one core for half a second; then on all that there are. Prints the ratio of a step's processor time with two
# threads to that with one on that core, whether the bits are the same, and whether the second thread took part again.
CROWDED = """
import os, sys, time
import numpy as np
import tinyslm
from tinyslm.engine import Work
from tinyslm.kvcache import Sequence

def steps(engine, sequence, seconds):
    count, start, spent, ids = 0, time.perf_counter(), time.process_time(), np.array([5], np.int32)
    logits = np.empty((1, engine.program.vocab), np.float32)
    while time.perf_counter() - start < seconds:
        engine.step([Work(sequence, ids, 1)], logits)
        engine.cache.truncate(sequence, 100)
        count += 1
    return (time.process_time() - spent) / count, logits

def ran(thread):
    return int(open(f"/proc/self/task/{thread}/schedstat").read().split()[0]) / 1e9

tinyslm.load(sys.argv[1], threads=1).close()
allowed, results = os.sched_getaffinity(0), []
os.sched_setaffinity(0, {min(allowed)})
for threads in (1, 2):
    with tinyslm.load(sys.argv[1], threads=threads) as model:
        engine, sequence = model._scheduler.engine, Sequence()
        engine.step([Work(sequence, np.arange(100, dtype=np.int32), 0)], np.empty((0, model.vocab_size), np.float32))
        steps(engine, sequence, 0.2)
        results.append(steps(engine, sequence, 0.3))
        if threads == 2:
            second = [int(t) for t in os.listdir("/proc/self/task") if int(t) != os.getpid()][-1]
            for t in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(t), allowed)
            start, deadline = ran(second), time.monotonic() + 10
            while ran(second) - start < 0.002 and time.monotonic() < deadline:
                steps(engine, sequence, 0.1)
            back = ran(second) - start >= 0.002
(one, a), (two, b) = results
print(two / one, int(np.array_equal(a, b)), int(back))
"""


@pytest.mark.skipif(not has_native(), reason="the C core was not built")
@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="tells of threads as Linux does")
def test_threads_that_share_a_core(tmp_path: Path) -> None:
    """Two threads on one core are about as fast as one, and take part again when there is room."""
    ratio, same, back = map(float, run_python(CROWDED, tiny_file(tmp_path)).split())
    assert ratio < 4, "two threads spin each other down"
    assert same
    assert back, "the second thread takes no part any more"
