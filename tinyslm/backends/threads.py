"""How many threads to use: physical cores within the affinity mask and the cgroup quota."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import OptionError


def default_threads() -> int:
    """TINYSLM_THREADS, or the physical cores that this process may use. OptionError where the variable is no count."""
    wanted = os.environ.get("TINYSLM_THREADS")
    if wanted:
        if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
            raise OptionError(f"TINYSLM_THREADS={wanted!r}: must be a number from 1 to 1024")
        return int(wanted)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return max(1, min(physical_cores(allowed), quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))))


def physical_cores(cpus: set[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that `cpus` belong to; hardware threads of one core share its units, so a second one gains nothing."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((root / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def quota(membership: Path, root: Path) -> int:
    """CPUs of the tightest cgroup quota (versions 1 and 2) above this process, rounded up; many where there is none."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return 1 << 10
    found = [float(1 << 10)]
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "none", "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root if not controllers else root / "cpu"
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            found.append(_quota_of(folder))
            if folder == base:
                break
    return max(1, -int(-min(found) // 1))


def _quota_of(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return float(most) / float(period) if most.strip() != "max" and float(most) > 0 else float(1 << 10)
    except (OSError, ValueError, ZeroDivisionError):
        return float(1 << 10)
