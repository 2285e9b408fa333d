"""tools/pytest_main.py: exit codes, the environment of tests, and processes that outlive them."""

import os
import subprocess
import sys
from pathlib import Path

from tools import pytest_main

LEAVES_A_PROCESS = """
import subprocess
def test_leaves():
    subprocess.run(["sh", "-c", "setsid sleep 600 & echo $! > left_pid"], check=True)
"""
TELLS = """
import os, tempfile
def test_tells():
    open("told", "w").write(tempfile.gettempdir() + " " + os.environ["HOME"])
"""

LOADS_NOTHING_MORE = """
def test_the_plugin(request):
    assert not request.config.pluginmanager.hasplugin("hypo" "thesispytest")
"""
# As Bazel would, but that nothing is given as long to end.
MAIN = "import sys; from tools import pytest_main; pytest_main.GRACE_S = 0.2; sys.exit(pytest_main.main())"


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Runs one test file, in a folder."""
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\npython_files = '*_test.py'\n")
    (folder / "some_test.py").write_text(text)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("XML_OUTPUT_FILE", "HOME")
    }
    environment["PYTHONPATH"] = str(Path(pytest_main.__file__).absolute().parent.parent)
    command = [sys.executable, "-c", MAIN, "some_test.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_process_that_outlives_the_tests_is_named_ended_and_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, LEAVES_A_PROCESS)
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "sleep 600" in done.stderr
    assert not Path("/proc", (tmp_path / "left_pid").read_text().strip()).exists()


def test_tests_get_a_short_folder_that_is_removed(tmp_path: Path) -> None:
    done = run(tmp_path, TELLS)
    assert done.returncode == 0, done.stdout + done.stderr
    temporary, home = (tmp_path / "told").read_text().split()
    assert len(temporary) < 30
    assert home.startswith(temporary)
    assert not Path(temporary).exists()


def test_a_file_that_holds_no_test_fails(tmp_path: Path) -> None:
    assert run(tmp_path, "").returncode != 0


def test_a_file_loads_the_plugin_of_hypothesis_only_where_it_uses_it(tmp_path: Path) -> None:
    (tmp_path / "uses_test.py").write_text("import hypothesis\n")
    assert not pytest_main.plugin_options(str(tmp_path / "uses_test.py"))
    done = run(tmp_path, LOADS_NOTHING_MORE)
    assert done.returncode == 0, done.stdout
