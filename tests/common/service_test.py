"""A service process: flags, readiness, signals and exit codes, on real processes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.common import service as service_module
from ray_mono.common.service import add_common_arguments, announce_ready, setup_logging

WAIT_S = 30.0

PROGRAM = """
import argparse, asyncio, os, sys
from ray_mono.common import service as module
from ray_mono.common.service import Service, add_common_arguments, run_service

async def serve(service: Service) -> None:
    how = arguments.how
    if how == "fails at start":
        raise ValueError("no start")
    if how == "waits at start":
        print("waiting", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("gave up", flush=True)
    service.on_dump(lambda: {"answer": 42})
    async def fail():
        raise ValueError("task broke")
    if how == "task fails":
        service.tasks.spawn(fail(), "fragile")
    service.announce_ready({"address": "here:1"})
    if how == "stops by itself":
        service.stop("another one ended")
    await service.until_stopped()
    if how == "stops by itself":
        print("closing", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    if how == "closes slowly":
        print("closing", flush=True)
        await asyncio.Event().wait()
    if how == "fails at close":
        raise ValueError("no close")
    print("closed", flush=True)

parser = argparse.ArgumentParser()
parser.add_argument("--how", default="")
add_common_arguments(parser)
arguments = parser.parse_args()
code = run_service("toy", serve, arguments)
if arguments.how == "stops by itself":
    print("cleaning up", flush=True)
    sys.stdin.readline()
    print("clean", flush=True)
sys.exit(code)
"""


class Toy:
    """The program above as a child, told where to say that it is ready."""

    def __init__(self, how: str, **environment: str) -> None:
        read_end, write_end = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "--how", how, "--ready-fd", str(write_end)],
            pass_fds=[write_end],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path), **environment},
        )
        os.close(write_end)
        self._ready = open(read_end)

    def ready_line(self) -> str:
        """What it says when it can be used; empty if it died first."""
        return self._ready.read()

    def output_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def log_until(self, text: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return line
        raise AssertionError(f"{text!r} was never logged")

    def end(self) -> tuple[int, str, str]:
        """(exit code, output, log) of its end."""
        output, log = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, output, log

    def close(self) -> None:
        self._ready.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def toys() -> Iterator[list[Toy]]:
    started: list[Toy] = []
    yield started
    for toy in started:
        toy.close()


def start(toys: list[Toy], how: str = "", **environment: str) -> Toy:
    toys.append(Toy(how, **environment))
    return toys[-1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_it_in_order(toys: list[Toy], signum: signal.Signals) -> None:
    toy = start(toys)
    assert json.loads(toy.ready_line()) == {"pid": toy.process.pid, "address": "here:1"}
    toy.process.send_signal(signum)
    code, output, log = toy.end()
    assert code == 0 and output == "closed\n" and f"stopping: {signum.name}" in log


def test_sigusr1_writes_its_state_to_the_log_and_it_lives_on(toys: list[Toy]) -> None:
    toy = start(toys)
    toy.ready_line()
    for _ in range(2):
        toy.process.send_signal(signal.SIGUSR1)
        assert '{"answer": 42}' in toy.log_until("state:")
    toy.process.terminate()
    assert toy.end()[0] == 0


@pytest.mark.parametrize(
    ("how", "message"), [("task fails", "ValueError: task broke"), ("fails at start", "ValueError: no start")]
)
def test_a_failure_ends_it_with_a_traceback(toys: list[Toy], how: str, message: str) -> None:
    code, _, log = start(toys, how).end()
    assert code == 1 and message in log and "Traceback" in log
    assert log.splitlines()[-1].endswith(f" after a failure: {message.partition(': ')[2]}")


def test_a_failure_before_it_is_ready_ends_the_descriptor_without_a_line(toys: list[Toy]) -> None:
    assert start(toys, "fails at start").ready_line() == ""


def test_a_failure_while_closing_is_told(toys: list[Toy]) -> None:
    toy = start(toys, "fails at close")
    toy.ready_line()
    toy.process.terminate()
    code, _, log = toy.end()
    assert code == 1 and "ValueError: no close" in log


def test_a_stop_before_it_is_up_cancels_the_start(toys: list[Toy]) -> None:
    toy = start(toys, "waits at start")
    assert toy.output_line() == "waiting"
    toy.process.terminate()
    code, output, _ = toy.end()
    assert code == 0 and output == "gave up\n"


def test_a_second_signal_ends_it_at_once(toys: list[Toy]) -> None:
    toy = start(toys, "closes slowly")
    toy.ready_line()
    toy.process.terminate()
    assert toy.output_line() == "closing"
    toy.process.terminate()
    code, _, log = toy.end()
    assert code == 1 and "SIGTERM while stopping" in log


@pytest.mark.parametrize("while_it_is", ["closing", "cleaning up"])
def test_the_first_signal_takes_nothing_from_an_end_that_has_begun(toys: list[Toy], while_it_is: str) -> None:
    toy = start(toys, "stops by itself")
    for step in ("closing", "closed", "cleaning up", "clean"):
        assert toy.output_line() == step
        if step == while_it_is:
            toy.process.terminate()
        if step in ("closing", "cleaning up"):
            toy.go_on()
    assert toy.end()[0] == 0


def test_a_second_signal_ends_also_what_follows(toys: list[Toy]) -> None:
    toy = start(toys, "stops by itself")
    assert toy.output_line() == "closing"
    toy.process.terminate()
    toy.go_on()
    assert toy.output_line() == "closed"
    assert toy.output_line() == "cleaning up"
    toy.process.terminate()
    code, _, log = toy.end()
    assert code == 1 and "SIGTERM while stopping" in log


def test_it_dies_when_its_parent_was_gone_before_it_could_look(toys: list[Toy]) -> None:
    toy = start(toys, RAY_MONO_PARENT_PID="1")
    code, output, _ = toy.end()
    assert (code, output, toy.ready_line()) == (-signal.SIGKILL, "", "")


def test_a_launcher_that_is_gone_is_an_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        announce_ready(write_end, {})


def test_without_a_descriptor_readiness_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        announce_ready(None, {"address": "a:1"})
    assert '"address": "a:1"' in caplog.text


def test_the_common_flags_have_defaults_and_a_wrong_level_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    arguments = parser.parse_args([])
    assert (arguments.log_level, arguments.ready_fd, arguments.session_dir) == ("info", None, None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--log-level", "loud"])
    assert "loud" in capsys.readouterr().err
    with pytest.raises(ValueError, match="loud"):
        setup_logging("loud", "toy")


def test_importing_it_brings_in_nothing_heavy() -> None:
    program = (
        "import sys, ray_mono.common.service;"
        " sys.exit(bool({'grpc', 'numpy', 'ctypes', 'google'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert Path(service_module.__file__).exists()
