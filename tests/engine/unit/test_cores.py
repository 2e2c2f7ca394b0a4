"""The CPU quota of a container."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.engine.cores import NO_QUOTA, cpu_quota, num_cores, num_schedulable

CPU_GROUPS = (Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),  # a container sees its own group as the root
        ("0::/pod/box", {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "max 100000"}, 2),
        ("0::/pod/box", {"pod/cpu.max": "400000 100000", "pod/box/cpu.max": "50000 100000"}, 0.5),
        ("0::/somewhere/else", {"cpu.max": "300000 100000"}, 3),
        ("0::/", {}, NO_QUOTA),
        ("0::/", {"cpu.max": "max 100000"}, NO_QUOTA),
        ("0::/", {"cpu.max": "damaged"}, NO_QUOTA),
        (
            "5:memory:/box\n3:cpu,cpuacct:/box\n0::/",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "250000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("3:cpu:/box", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, NO_QUOTA),
        ("4:cpuset:/box", {"cpuset/cpu.max": "100000 100000"}, NO_QUOTA),
    ],
)
def test_smallest_limit_of_the_groups_holds(
    membership: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    (tmp_path / "membership").write_text(f"{membership}\n", encoding="utf-8")
    assert cpu_quota(tmp_path / "membership", written(tmp_path / "groups", files)) == quota


def test_other_systems_have_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "nowhere") == NO_QUOTA


def test_quota_of_a_real_group_is_found() -> None:
    """The threads of ONNX Runtime follow from it."""
    parent = next((path for path in CPU_GROUPS if (path / "cgroup.procs").exists()), None)
    if parent is None or os.geteuid() != 0 or num_schedulable() < 2:
        pytest.skip("not run: a control group with less than all cores cannot be made here")
    group = parent / f"test-{os.getpid()}"
    try:
        group.mkdir()
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("100000 100000", encoding="utf-8")
        else:
            (group / "cpu.cfs_quota_us").write_text("100000", encoding="utf-8")
    except OSError:
        if group.exists():
            group.rmdir()
        pytest.skip("not run: a control group with less than all cores cannot be made here")
    code = (
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from {{ cookiecutter.package_name }}.engine.cores import num_cores, num_threads_within_quota\n"
        "print(num_cores(), num_threads_within_quota())"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(group)], capture_output=True, text=True, check=False, timeout=60
        )
    finally:
        group.rmdir()
    assert done.stdout.split() == ["1", "1"], done.stderr
    assert num_cores() == num_schedulable() or cpu_quota() < num_schedulable()
