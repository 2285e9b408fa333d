"""The reaper with stand-ins for services: real processes, real signals."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ray_mono._private.node import reaper_client
from ray_mono._private.node.process_identity import ProcessIdentity
from ray_mono._private.node.reaper import Reaper
from ray_mono._private.node.reaper_client import ReaperHandle, ServiceSpec, ServiceStartError, why_ended
from ray_mono._private.node.service_process import GO_ON, START_AGAIN, log_tail
from ray_mono.common.process import FINAL_STATUS, INTERPRETER, module_command
from tests.python._private.node import stand_in
from tests.python._private.node.stand_in import READY_TIMEOUT_S, launch, spec, wait_until_gone
from tests.waiting import wait_until

# A process that starts a node, says whom to look for, and does not end by itself. Arguments: a directory, and
# what to do then.
STARTER = """
import os, signal, sys
from pathlib import Path
from tests.python._private.node import stand_in
directory = Path(sys.argv[1])
reaper = stand_in.launch(directory)
reaper.start(stand_in.spec("service", stand_in.SERVE, directory))
service = reaper.wait_ready("service", 30)
if sys.argv[2] == "fork" and os.fork() == 0:
    # A fork that lives on with whatever descriptors it got, as a user's may.
    signal.pause()
if sys.argv[2] == "detach":
    reaper.detach()
print(reaper.identity.pid, service["pid"], flush=True)
if sys.argv[2] != "detach":
    signal.pause()
"""


def start_starter(directory: Path, what: str) -> tuple[subprocess.Popen[str], int, int]:
    """(the starter, the reaper's pid, the service's pid)"""
    root = Path(__file__).absolute().parents[4]
    env = stand_in.reaper_environment()
    env["PYTHONPATH"] = f"{root}{os.pathsep}{env['PYTHONPATH']}"
    command = [sys.executable, "-c", STARTER, str(directory), what]
    starter = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert starter.stdout is not None
    reaper_pid, service_pid = starter.stdout.readline().split()
    return starter, int(reaper_pid), int(service_pid)


def test_tells_what_each_service_announced(session_base: Path) -> None:
    reaper = launch(session_base)
    for name in ("one", "two"):
        reaper.start(spec(name, stand_in.SERVE, session_base))
    answers = [reaper.wait_ready(name, READY_TIMEOUT_S) for name in ("two", "one")]
    assert [answer["address"] for answer in answers] == ["127.0.0.1:1"] * 2
    assert len({answer["pid"] for answer in answers}) == 2
    reaper.shutdown()


def test_a_service_that_fails_is_told_with_its_status_and_log(session_base: Path) -> None:
    reaper = launch(session_base)
    reaper.start(spec("unlucky", stand_in.FAIL, session_base))
    with pytest.raises(ServiceStartError, match=r"(?s)unlucky .*exit status 3.*no luck today"):
        reaper.wait_ready("unlucky", READY_TIMEOUT_S)
    reaper.shutdown()


def test_a_service_that_is_not_ready_in_time_is_told_with_its_log(session_base: Path) -> None:
    code = "import signal, sys; print('no room yet', file=sys.stderr, flush=True); signal.pause()"
    waits = spec("waits", code, session_base)
    reaper = launch(session_base)
    reaper.start(waits)
    wait_until(lambda: "no room yet" in log_tail(waits.stderr), "it says what it waits for")
    with pytest.raises(ServiceStartError, match=r"waits was not ready within 0.01 s\nno room yet"):
        reaper.wait_ready("waits", 0.01)
    reaper.shutdown()


def test_a_program_that_does_not_exist_is_a_service_that_fails(session_base: Path) -> None:
    reaper = launch(session_base)
    missing = spec("missing", "", session_base)
    reaper.start(type(missing)(**{**vars(missing), "argv": ["/nowhere/program"]}))
    with pytest.raises(ServiceStartError, match=r"(?s)exit status 127.*cannot start /nowhere/program"):
        reaper.wait_ready("missing", READY_TIMEOUT_S)
    reaper.shutdown()


def test_a_service_for_which_there_is_no_process_is_told_and_the_reaper_goes_on(
    session_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    reaper = Reaper(theirs, 1.0)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with ours, theirs:
        reaper._on_message({"op": "start", **asdict(spec("one", stand_in.SERVE, session_base))})
        told = json.loads(ours.recv(65536))
    assert told["name"] == "one" and "Resource temporarily unavailable" in told["exit"]
    # Else it could not be told to end any more.
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_a_service_that_closes_its_pipe_without_a_word_is_ended(session_base: Path) -> None:
    code = "import os, signal, sys; os.close(int(sys.argv[-1])); signal.pause()"
    reaper = launch(session_base)
    reaper.start(spec("mute", code, session_base))
    with pytest.raises(ServiceStartError, match="killed by SIGKILL"):
        reaper.wait_ready("mute", READY_TIMEOUT_S)
    reaper.shutdown()


def module_spec(name: str, directory: Path, *arguments: str, **more: Any) -> ServiceSpec:
    plain = spec(name, "", directory)
    argv = [*module_command("tests.python._private.node.module_service"), *arguments]
    env = {**stand_in.reaper_environment(), "MODULE_SERVICE_TEST": "set"}
    module = "tests.python._private.node.module_service"
    return replace(plain, argv=argv, env=env, module=module, imports=[module], **more)


def launch_beside_tests(directory: Path) -> ReaperHandle:
    """One that finds this folder's modules."""
    root = Path(__file__).absolute().parents[4]
    env = stand_in.reaper_environment()
    env |= {"PYTHONPATH": f"{root}{os.pathsep}{env['PYTHONPATH']}", "OUTSIDE": "set"}
    return ReaperHandle.launch(directory, directory / "reaper.log", env)


def test_a_service_in_python_is_a_process_like_any_other(session_base: Path) -> None:
    reaper = launch_beside_tests(session_base)
    link = ("between", "--link-fd")
    for name, text in (("one", "hello"), ("two", "and to you")):
        reaper.start(module_spec(name, session_base, "--say", text, link=link))
    one, two = (reaper.wait_ready(name, READY_TIMEOUT_S) for name in ("one", "two"))
    assert (one["heard"], two["heard"]) == ("and to you", "hello")
    for facts in (one, two):
        assert facts["title"].startswith(
            f"{INTERPRETER} -P -m tests.python._private.node.module_service --say"
        )
        assert (facts["variable"], facts["outside"]) == ("set", None)
        assert facts["parent"] == reaper.identity.pid
        # Standard input, output and error, and the pipe that this was told through: nothing of the reaper's.
        assert facts["descriptors"] == [
            "/dev/null",
            f"{session_base}/{facts_name(facts)}.err",
            f"{session_base}/{facts_name(facts)}.out",
            "pipe",
        ]
        assert facts["interrupt"]
        assert facts["pipes_break_writes"]
    reaper.shutdown()


def facts_name(facts: dict[str, Any]) -> str:
    return "one" if facts["heard"] == "and to you" else "two"


def test_services_are_executed_where_something_started_a_thread_in_the_reaper(session_base: Path) -> None:
    """A fork would copy the locks that the thread holds at that moment."""
    (session_base / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()\n"
    )
    root = Path(__file__).absolute().parents[4]
    env = stand_in.reaper_environment()
    env["PYTHONPATH"] = os.pathsep.join([str(session_base), str(root), env["PYTHONPATH"]])
    reaper = ReaperHandle.launch(session_base, session_base / "reaper.log", env)
    link = ("between", "--link-fd")
    for name in ("one", "two"):
        reaper.start(replace(module_spec(name, session_base, "--say", name, link=link), env=env))
    one, two = (reaper.wait_ready(name, READY_TIMEOUT_S) for name in ("one", "two"))
    assert (one["heard"], two["heard"]) == ("two", "one")
    assert one["parent"] == two["parent"] == reaper.identity.pid
    # The thread is in these interpreters too: they are no copies of the reaper's only thread that could go
    # on.
    assert one["threads"] == two["threads"] == 2
    assert (session_base / "reaper.log").read_text().count("services are executed") == 1
    reaper.shutdown()


def test_a_service_in_python_that_raises_is_told_with_its_traceback(session_base: Path) -> None:
    reaper = launch_beside_tests(session_base)
    reaper.start(module_spec("unlucky", session_base, "--fail", "no luck today"))
    with pytest.raises(ServiceStartError, match=r"(?s)exit status 1.*RuntimeError: no luck today"):
        reaper.wait_ready("unlucky", READY_TIMEOUT_S)
    reaper.shutdown()


def test_ends_services_in_reverse_order_and_removes_files(session_base: Path) -> None:
    story, owned = session_base / "story", session_base / "owned"
    owned.touch()
    reaper = launch(session_base)
    reaper.own_files([owned, session_base / "never made"], session_base)
    for name in ("a", "b", "c"):
        reaper.start(spec(name, stand_in.write_on_sigterm(story, name), session_base))
        reaper.wait_ready(name, READY_TIMEOUT_S)
    reaper.shutdown()
    assert story.read_text() == "cba"
    assert not owned.exists()


def test_a_service_may_be_ended_while_it_is_still_starting(session_base: Path) -> None:
    story = session_base / "story"
    reaper = launch(session_base)
    reaper.start(spec("steady", stand_in.write_on_sigterm(story, "steady"), session_base))
    reaper.wait_ready("steady", READY_TIMEOUT_S)
    # Its SIGTERM comes before it has become a program of its own, and must not be taken for the reaper's.
    reaper.start(spec("new", stand_in.SERVE, session_base, wants_ready=False))
    reaper.shutdown()
    assert story.read_text() == "steady"


def test_removes_the_sockets_of_those_that_are_gone_only(session_base: Path) -> None:
    def make(name: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(session_base / name))
        return made

    make("stale").close()
    with make("bound"):
        reaper = launch(session_base)
        reaper.own_files([], session_base)
        reaper.shutdown()
        assert (session_base / "bound").exists()
        assert not (session_base / "stale").exists()
    (session_base / "bound").unlink()


def test_kills_what_does_not_end_within_the_grace_period(session_base: Path) -> None:
    reaper = launch(session_base, grace_period_s=0.1)
    reaper.start(spec("stubborn", stand_in.SERVE_STUBBORNLY, session_base))
    pid = reaper.wait_ready("stubborn", READY_TIMEOUT_S)["pid"]
    reaper.shutdown()
    assert ProcessIdentity.of(pid) is None
    assert "stubborn" in (session_base / "reaper.log").read_text()


def test_ends_orphans_that_left_their_session(session_base: Path) -> None:
    pid_file = session_base / "pid"
    code = (
        stand_in.ANNOUNCE
        + f"""
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    with open({str(pid_file)!r}, "w") as file:
        file.write(str(os.getpid()))
    announce()
    signal.pause()
signal.pause()
"""
    )
    reaper = launch(session_base)
    reaper.start(spec("parent", code, session_base))
    reaper.wait_ready("parent", READY_TIMEOUT_S)
    orphan = int(pid_file.read_text())
    assert ProcessIdentity.of(orphan) is not None
    reaper.shutdown()
    assert ProcessIdentity.of(orphan) is None


def test_ends_the_node_when_a_service_of_it_dies(session_base: Path) -> None:
    reaper = launch(session_base)
    reaper.start(spec("raylet", stand_in.SERVE, session_base))
    reaper.start(spec("other", stand_in.SERVE, session_base))
    pids = {name: reaper.wait_ready(name, READY_TIMEOUT_S)["pid"] for name in ("raylet", "other")}
    os.kill(pids["raylet"], signal.SIGKILL)
    assert reaper.wait_ended(READY_TIMEOUT_S)
    assert [(end.name, end.how) for end in reaper.exits()] == [("raylet", "killed by SIGKILL")]
    assert ProcessIdentity.of(pids["other"]) is None
    reaper.shutdown()


def test_a_service_that_dies_while_the_node_ends_is_told_too(session_base: Path) -> None:
    reaper = launch(session_base)
    reaper.start(spec("raylet", stand_in.SERVE, session_base))
    raylet_pid = reaper.wait_ready("raylet", READY_TIMEOUT_S)["pid"]
    reaper.start(spec("first", stand_in.SERVE, session_base))
    first_pid = reaper.wait_ready("first", READY_TIMEOUT_S)["pid"]
    # Asked to end before the raylet is: started after it.
    reaper.start(spec("last", stand_in.kill_on_sigterm(raylet_pid), session_base))
    reaper.wait_ready("last", READY_TIMEOUT_S)
    os.kill(first_pid, signal.SIGKILL)
    assert reaper.wait_ended(READY_TIMEOUT_S)
    ends = [(end.name, end.how) for end in reaper.exits()]
    assert ends == [("first", "killed by SIGKILL"), ("raylet", "killed by SIGKILL")]
    reaper.shutdown()


def test_the_node_survives_a_service_that_is_not_vital(session_base: Path) -> None:
    reaper = launch(session_base)
    reaper.start(spec("extra", stand_in.FAIL, session_base, wants_ready=False, after_exit=GO_ON))
    # Sent after the end of the other was seen: its answer comes later.
    while not reaper.exits():
        reaper.wait_ended(0.05)
    reaper.start(spec("service", stand_in.SERVE, session_base))
    reaper.wait_ready("service", READY_TIMEOUT_S)
    assert [end.how for end in reaper.exits()] == ["exit status 3"]
    reaper.shutdown()


def pid_of_next(reaper: ReaperHandle, name: str, pid: int) -> int:
    """Of the process that follows the one with this pid, when it is ready."""
    while True:
        assert not reaper.wait_ended(0.05)
        with contextlib.suppress(ServiceStartError):
            ready = int(reaper.wait_ready(name, READY_TIMEOUT_S)["pid"])
            if ready != pid:
                return ready


def test_a_service_that_is_to_be_there_is_started_again_however_it_ended(session_base: Path) -> None:
    reaper = launch(session_base)
    reaper.start(spec("head", stand_in.SERVE, session_base, after_exit=START_AGAIN))
    pids = [reaper.wait_ready("head", READY_TIMEOUT_S)["pid"]]
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        os.kill(pids[-1], signal_number)
        pids.append(pid_of_next(reaper, "head", pids[-1]))
    assert len(set(pids)) == 3 and reaper.exits() == []
    reaper.shutdown()
    assert [ProcessIdentity.of(pid) for pid in pids] == [None] * 3


def test_a_service_whose_place_another_one_has_taken_is_not_started_again(session_base: Path) -> None:
    reaper = launch(session_base)
    deposed = f"import os, signal\nsignal.signal(signal.SIGUSR2, lambda *_: os._exit({FINAL_STATUS}))\n"
    reaper.start(spec("head", deposed + stand_in.SERVE, session_base, after_exit=START_AGAIN))
    os.kill(reaper.wait_ready("head", READY_TIMEOUT_S)["pid"], signal.SIGUSR2)
    while not reaper.exits():
        reaper.wait_ended(0.05)
    # The node goes on: its raylet looks for the other one.
    reaper.start(spec("service", stand_in.SERVE, session_base))
    reaper.wait_ready("service", READY_TIMEOUT_S)
    assert [end.how for end in reaper.exits()] == [f"exit status {FINAL_STATUS}"]
    assert "head is not started again" in (session_base / "reaper.log").read_text()
    reaper.shutdown()


def test_a_service_that_ends_again_and_again_ends_the_node_with_the_reason(
    session_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = "restarts.ENDS_MAX, restarts.PAUSE_FIRST_S = 4, 0.01"
    code = f"from ray_mono._private.node import reaper, restarts; {changed}; reaper.main()"
    monkeypatch.setattr(reaper_client, "module_command", lambda module: [INTERPRETER, "-c", code])
    reaper = launch(session_base)
    served = session_base / "served"
    once = f"import os, sys\nif os.path.exists({str(served)!r}): sys.exit('no luck today')\n"
    once += f"open({str(served)!r}, 'w').close()\n"
    reaper.start(spec("head", once + stand_in.SERVE, session_base, after_exit=START_AGAIN))
    os.kill(reaper.wait_ready("head", READY_TIMEOUT_S)["pid"], signal.SIGKILL)
    assert reaper.wait_ended(READY_TIMEOUT_S)
    [end] = reaper.exits()
    assert (end.how, end.log_tail.splitlines()[-1]) == ("exit status 1", "no luck today")
    log = (session_base / "reaper.log").read_text()
    assert "ending the node: head" in log and "the end of 5 in a row" in log
    assert "ended: exit status 1 (no luck today)" in why_ended(str(session_base / "reaper.log"))
    reaper.shutdown()


def test_where_no_process_can_be_made_a_service_waits_and_nothing_is_left_open(
    session_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os\nfrom unittest import mock\nfrom ray_mono._private.node import reaper\n"
    code += "def forks(fork=os.fork):\n    yield fork()\n    yield from [BlockingIOError(11, 'no')] * 3\n"
    code += "    yield fork()\n"
    code += "os.fork, reaper.NOT_STARTED_PAUSE_S = mock.Mock(side_effect=forks()), 0.01\nreaper.main()"
    monkeypatch.setattr(reaper_client, "module_command", lambda module: [INTERPRETER, "-c", code])
    reaper = launch(session_base)
    reaper.start(spec("head", stand_in.SERVE, session_base, after_exit=START_AGAIN))
    pid = reaper.wait_ready("head", READY_TIMEOUT_S)["pid"]
    open_files = Path(f"/proc/{reaper.identity.pid}/fd")
    num_open = len(list(open_files.iterdir()))
    os.kill(pid, signal.SIGKILL)
    pid_of_next(reaper, "head", pid)
    assert len(list(open_files.iterdir())) == num_open
    reaper.shutdown()


def test_a_service_that_never_was_ready_is_its_starters_to_see_to(session_base: Path) -> None:
    reaper = launch(session_base)
    reaper.start(spec("head", stand_in.FAIL, session_base, after_exit=START_AGAIN))
    with pytest.raises(ServiceStartError, match="no luck today"):
        reaper.wait_ready("head", READY_TIMEOUT_S)
    reaper.start(spec("service", stand_in.SERVE, session_base))
    reaper.wait_ready("service", READY_TIMEOUT_S)
    assert [end.name for end in reaper.exits()] == ["head"]
    reaper.shutdown()


def test_ctrl_c_is_not_for_the_reaper(session_base: Path) -> None:
    reaper = launch(session_base)
    reaper.start(spec("service", stand_in.SERVE, session_base))
    reaper.wait_ready("service", READY_TIMEOUT_S)
    assert os.getpgid(reaper.identity.pid) != os.getpgid(0)
    os.kill(reaper.identity.pid, signal.SIGINT)
    reaper.start(spec("later", stand_in.SERVE, session_base))
    reaper.wait_ready("later", READY_TIMEOUT_S)
    reaper.shutdown()


@pytest.mark.parametrize("what", ["stay", "fork"])
def test_everything_ends_when_its_starter_is_killed(session_base: Path, what: str) -> None:
    starter, reaper_pid, service_pid = start_starter(session_base, what)
    starter.kill()
    starter.wait()
    wait_until_gone(reaper_pid)
    assert ProcessIdentity.of(service_pid) is None
    if what == "fork":
        os.killpg(starter.pid, signal.SIGKILL)
    assert starter.stdout is not None
    starter.stdout.close()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_detached_node_outlives_its_starter_until_it_is_asked_to_end(
    session_base: Path, signal_number: signal.Signals
) -> None:
    starter, reaper_pid, service_pid = start_starter(session_base, "detach")
    with starter:
        assert starter.wait() == 0
    assert ProcessIdentity.of(service_pid) is not None
    os.kill(reaper_pid, signal_number)
    wait_until_gone(reaper_pid)
    assert ProcessIdentity.of(service_pid) is None


def test_services_go_with_a_reaper_that_is_killed(session_base: Path) -> None:
    reaper: ReaperHandle = launch(session_base)
    reaper.start(spec("service", stand_in.SERVE, session_base))
    pid = reaper.wait_ready("service", READY_TIMEOUT_S)["pid"]
    os.kill(reaper.identity.pid, signal.SIGKILL)
    wait_until_gone(pid)
    reaper.shutdown()
