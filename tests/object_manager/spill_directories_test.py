"""Where spilled objects lie: what is made, what is refused, and what of the dead is removed."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from ray_mono.object_manager.spill_directories import SpillDirectories, SpillDirectoryError
from tests.object_manager.harness import run_python

PROGRAM = """
import os, sys, time
from ray_mono.object_manager.spill_directories import SpillDirectories
directories = SpillDirectories([sys.argv[1]], sys.argv[2])
open(directories.paths[0] + "/0", "w").write("spilled")
os.write(int(sys.argv[3]), b"ready")
time.sleep(1000)
"""


def test_each_node_has_a_directory_of_its_own_that_only_its_user_can_read(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "spilled"
    first, second = SpillDirectories([str(directory)], "aa"), SpillDirectories([str(directory)], "bb")
    assert sorted(os.listdir(directory)) == ["ray_spilled_objects_aa", "ray_spilled_objects_bb"]
    for each in (*first.paths, *second.paths):
        assert stat.S_IMODE(os.stat(each).st_mode) == 0o700
    first.close()
    assert os.listdir(directory) == ["ray_spilled_objects_bb"]
    second.close()
    assert os.listdir(directory) == []


def test_what_a_killed_node_left_is_removed_by_the_next_and_what_others_have_stays(tmp_path: Path) -> None:
    living = SpillDirectories([str(tmp_path)], "aa")
    rays = tmp_path / "ray_spilled_objects_of_ray"
    rays.mkdir()
    (rays / "file").write_text("not ours")
    read_fd, write_fd = os.pipe()
    process = run_python("-c", PROGRAM, str(tmp_path), "dead", str(write_fd), pass_fds=(write_fd,))
    os.close(write_fd)
    with open(read_fd, "rb") as ready:
        assert ready.read(5) == b"ready"
    assert (tmp_path / "ray_spilled_objects_dead" / "0").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    new = SpillDirectories([str(tmp_path)], "bb")
    names = {"ray_spilled_objects_aa", "ray_spilled_objects_bb", "ray_spilled_objects_of_ray"}
    assert set(os.listdir(tmp_path)) == names and (rays / "file").exists()
    new.close()
    living.close()


def test_what_was_left_in_sessions_that_have_ended_is_removed(tmp_path: Path) -> None:
    ended, running, own = (tmp_path / f"session_{name}" for name in ("ended", "running", "own"))
    left = ended / "ray_spilled_objects_dead"
    left.mkdir(parents=True)
    for name in ("lock", "0"):
        (left / name).write_text("")
    living = SpillDirectories([str(running)], "aa")
    own.mkdir()
    new = SpillDirectories([str(own)], "bb", str(own))
    assert os.listdir(ended) == [] and len(os.listdir(running)) == len(os.listdir(own)) == 1
    new.close()
    living.close()


def test_a_directory_that_is_a_file_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpillDirectoryError, match=f"spilled to {tmp_path}/file: Not a directory"):
        SpillDirectories([str(tmp_path / "file")], "aa")


def test_where_one_of_several_is_bad_none_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpillDirectoryError):
        SpillDirectories([str(tmp_path / "good"), str(tmp_path / "file")], "aa")
    assert os.listdir(tmp_path / "good") == []


def test_a_directory_in_which_others_can_replace_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(SpillDirectoryError, match="can replace what is in"):
        SpillDirectories([str(tmp_path / "open")], "aa")


@pytest.mark.parametrize("level", ["node", "directory"])
def test_what_somebody_has_removed_is_made_again_and_is_its_nodes_as_before(
    tmp_path: Path, level: str
) -> None:
    directory = tmp_path / "spilled"
    living = SpillDirectories([str(directory)], "aa")
    (path,) = living.paths
    living.bring_back(path)
    shutil.rmtree(path if level == "node" else directory)
    living.bring_back(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    other = SpillDirectories([str(directory)], "bb")
    assert os.path.isdir(path)
    other.close()
    living.close()
    living.bring_back(path)
    assert os.listdir(directory) == []


def test_where_its_file_system_is_gone_nothing_is_made_again(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine lets us mount nothing")
    living = SpillDirectories([str(place)], "aa")
    subprocess.run(["umount", "--lazy", str(place)], check=True)
    with pytest.raises(OSError, match="the file system on which it lay is gone"):
        living.bring_back(living.paths[0])
    assert os.listdir(place) == []
    living.close()
