"""How many CPU cores this process may use, within the limit of its container."""

import os
from pathlib import Path

NO_QUOTA = float("inf")


def num_cores() -> int:
    """Returns the cores that this process may run on, or as many as its CPU quota is worth, rounded down."""
    return max(1, int(min(num_schedulable(), cpu_quota())))


def num_threads_within_quota() -> int:
    """Returns the number of threads for a pool that would ignore the quota; 0 without a quota, for its own choice."""
    return num_cores() if cpu_quota() < num_schedulable() else 0


def num_schedulable() -> int:
    """Returns the cores that this process may run on, whatever its quota is."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns the CPU time that this process gets in a second, in seconds; infinite without a limit.

    The smallest limit of its control groups (Linux, versions 1 and 2) and of those around them holds. A container may
    see its own group as the root, under whatever path `membership` says.
    """
    quotas = [NO_QUOTA]
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        return NO_QUOTA
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / controllers if controllers else root
        group = mounted / path.lstrip("/")
        quotas += [_quota_of(folder) for folder in (group, *group.parents) if folder.is_relative_to(mounted)]
    return min(quotas)


def _quota_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():  # version 2
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return NO_QUOTA if quota == "max" or int(quota) < 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return NO_QUOTA
