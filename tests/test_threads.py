"""How many threads: the environment, affinity, siblings, and quotas of both versions of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinyslm.backends import threads
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
