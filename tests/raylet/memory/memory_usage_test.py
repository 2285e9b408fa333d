"""How much memory is used of how much: on made-up machines, and on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_mono.raylet.memory.memory_usage import LinuxMemory, MemoryUsage

GIB = 1 << 30
NO_LIMIT_V1 = 9223372036854771712
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw"


class Machine:
    """Its /proc and /sys are files of the test's. It has 64 GiB, of which 8 are used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {56 << 20} kB\n")

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def has_v2(self, own: str, root: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{own}")
        self.write("proc/self/mountinfo", V2_MOUNT.format(root=root))
        self.write("sys/fs/cgroup/cgroup.procs", "")

    def has_v1(self, own: str, root: str = "/") -> None:
        self.write("proc/self/cgroup", f"9:name=systemd:/\n4:cpu,memory:{own}\n0::/")
        self.write("proc/self/mountinfo", V1_MOUNT.format(root=root))

    def v2(self, path: str, limit: int | str, used: int, cached: int = 0) -> None:
        directory = f"sys/fs/cgroup{path}"
        self.write(f"{directory}/memory.max", limit)
        self.write(f"{directory}/memory.current", used)
        stat = f"anon 1\ninactive_file {cached // 2}\nactive_file {cached - cached // 2}\nshmem 7"
        self.write(f"{directory}/memory.stat", stat)

    def v1(self, path: str, limit: int, used: int, cached: int = 0) -> None:
        directory = f"sys/fs/cgroup/memory{path}"
        self.write(f"{directory}/memory.limit_in_bytes", limit)
        self.write(f"{directory}/memory.usage_in_bytes", used)
        own = "inactive_file 1000\nactive_file 1000\n"  # without those below it
        total = f"total_inactive_file {cached // 2}\ntotal_active_file {cached - cached // 2}"
        self.write(f"{directory}/memory.stat", own + total)

    def usage(self) -> MemoryUsage:
        return LinuxMemory(str(self.root)).usage()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_cgroups_it_is_what_the_kernel_says_of_the_machine(machine: Machine) -> None:
    assert machine.usage() == MemoryUsage(8 * GIB, 64 * GIB)


def test_a_cgroup_of_version_2_binds_less_its_page_cache(machine: Machine) -> None:
    machine.has_v2("/kubepods/pod1/box")
    machine.v2("/kubepods/pod1/box", 4 * GIB, 3 * GIB, cached=GIB)
    usage = machine.usage()
    assert (usage.used_bytes, usage.limit_bytes) == (2 * GIB, 4 * GIB)
    assert usage.of == "cgroup /kubepods/pod1/box"


def test_a_cgroup_of_version_1_binds_less_the_page_cache_of_all_below_it(machine: Machine) -> None:
    machine.has_v1("/docker/abc")
    machine.v1("/docker/abc", 4 * GIB, 3 * GIB, cached=GIB)
    usage = machine.usage()
    assert (usage.used_bytes, usage.limit_bytes) == (2 * GIB, 4 * GIB)
    assert usage.of == "cgroup /docker/abc"


@pytest.mark.parametrize("smallest", ["/", "/a", "/a/b"])
def test_of_all_cgroups_above_a_process_the_smallest_limit_counts(machine: Machine, smallest: str) -> None:
    machine.has_v2("/a/b")
    for number, path in enumerate(["/", "/a", "/a/b"]):
        machine.v2(path, 2 * GIB if path == smallest else 5 * GIB, number)
    usage = machine.usage()
    assert usage.limit_bytes == 2 * GIB and usage.of == f"cgroup {smallest}"


def test_a_limit_above_what_the_machine_has_is_none(machine: Machine) -> None:
    machine.has_v2("/a")
    machine.v2("/a", 65 * GIB, GIB)
    assert machine.usage() == MemoryUsage(8 * GIB, 64 * GIB)


@pytest.mark.parametrize("version", [1, 2])
def test_cgroups_without_a_limit_leave_it_to_the_machine(machine: Machine, version: int) -> None:
    if version == 1:
        machine.has_v1("/a")
        machine.v1("/a", NO_LIMIT_V1, GIB)
    else:
        machine.has_v2("/a")
        machine.v2("/a", "max", GIB)
    assert machine.usage() == MemoryUsage(8 * GIB, 64 * GIB)


def test_in_a_container_that_sees_only_its_own_part_the_mount_is_its_cgroup(machine: Machine) -> None:
    machine.has_v1("/docker/abc", root="/docker/abc")
    machine.v1("", 4 * GIB, GIB)
    assert machine.usage().limit_bytes == 4 * GIB


def test_a_path_from_outside_of_the_container_is_the_mount(machine: Machine) -> None:
    machine.has_v2("/../../system.slice/x")
    machine.v2("", 4 * GIB, GIB)
    assert machine.usage().limit_bytes == 4 * GIB


def test_both_versions_may_be_mounted_and_one_of_them_has_the_memory(machine: Machine) -> None:
    machine.has_v1("/a")
    unified = "42 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    machine.write("proc/self/mountinfo", unified + V1_MOUNT.format(root="/"))
    machine.v1("/a", 4 * GIB, GIB)
    assert machine.usage().of == "cgroup /a"


def test_a_limit_that_changes_is_followed(machine: Machine) -> None:
    machine.has_v2("/a")
    machine.v2("/a", 4 * GIB, GIB)
    memory = LinuxMemory(str(machine.root))
    assert memory.usage().limit_bytes == 4 * GIB
    machine.v2("/a", 3 * GIB, 2 * GIB)
    assert (memory.usage().limit_bytes, memory.usage().used_bytes) == (3 * GIB, 2 * GIB)


def test_more_page_cache_than_is_used_is_nothing_used(machine: Machine) -> None:
    machine.has_v2("/a")
    machine.v2("/a", 4 * GIB, GIB, cached=2 * GIB)
    assert machine.usage().used_bytes == 0


def test_where_nothing_can_be_read_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="meminfo"):
        LinuxMemory(str(tmp_path)).usage()
    Machine(tmp_path).write("proc/meminfo", "MemTotal: 5 kB")
    with pytest.raises(ValueError, match="meminfo has no MemAvailable"):
        LinuxMemory(str(tmp_path)).usage()


# ---- this machine


def test_of_this_machine_a_part_is_used() -> None:
    usage = LinuxMemory().usage()
    assert 0 < usage.used_bytes < usage.limit_bytes


def test_what_a_process_takes_is_counted_as_its_own_and_files_are_not(tmp_path: Path) -> None:
    """It holds 100 MiB, and has read a file of 50 MiB through a map."""
    file = tmp_path / "file"
    file.write_bytes(bytes(50 << 20))
    code = (
        "import mmap, sys\n"
        "held = b'x' * (100 << 20)\n"
        f"file = open({str(file)!r}, 'r+b')\n"
        "mapped = mmap.mmap(file.fileno(), 0)\n"
        "sum(mapped[::4096])\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        memory = LinuxMemory()
        (found,) = memory.processes(memory.usage()).family(process.pid)
        process.stdin.close()
    assert 100 << 20 <= found.used_bytes < 140 << 20
    assert found.parent_pid == os.getpid() and "python" in found.name


def test_of_a_cgroup_only_its_own_processes_are_named(machine: Machine) -> None:
    machine.has_v2("/a")
    machine.v2("/a", 4 * GIB, GIB)
    machine.write("sys/fs/cgroup/a/cgroup.procs", "1")
    machine.write("sys/fs/cgroup/a/below/cgroup.procs", os.getpid())
    memory = LinuxMemory(str(machine.root))
    assert {process.pid for process in memory.processes(memory.usage())} == {1, os.getpid()}
