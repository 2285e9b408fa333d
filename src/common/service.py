"""The frame around a service process: flags that all services have, logging, readiness, signals, and an end
that is never silent.

    def main() -> int:
        parser = argparse.ArgumentParser(...)
        add_common_arguments(parser)
        arguments = parser.parse_args()
        return run_service("gcs_server", functools.partial(serve, arguments=arguments), arguments)

    async def serve(service: Service, arguments: argparse.Namespace) -> None:
        ...                                         # build and listen; tasks by service.tasks.spawn(...)
        service.on_dump(lambda: {...})              # what SIGUSR1 writes to the log
        service.announce_ready({"address": ...})
        await service.until_stopped()               # SIGTERM, SIGINT, or service.stop("why")
        ...                                         # close in order (a stop before this line cancels serve)

    if __name__ == "__main__":
        sys.exit(main())

A service ends with 0 when it was stopped and closed in order, and with 1 and a traceback in the log when
`serve` or one of its background tasks failed. Closing has STOP_TIMEOUT_S; a service that is slower, or that
gets a second signal, ends at once. The first signal takes nothing from an end that has begun for another
reason, nor from what follows run_service: when a node ends, each service hears of it twice, from the one that
ended before it and from the launcher. Where a launcher told its process id (process.PARENT_PID_VARIABLE) or
waits on --ready-fd, the service dies with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from ray_mono.common import process
from ray_mono.common.background import BackgroundTasks
from ray_mono.common.output import LOG_LEVELS

# Longer than any orderly close needs, shorter than a user's patience.
STOP_TIMEOUT_S = 10.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class LostPlaceError(Exception):
    """The node may go on only as a new one."""


class FinalError(Exception):
    """Ends a service that must not be started again."""


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --log-level, --ready-fd and --session-dir: log_level: str, ready_fd: int | None,
    session_dir: str | None."""
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="least severe messages to log (default: info)"
    )
    parser.add_argument(
        "--ready-fd",
        type=int,
        metavar="N",
        help=(
            "write one line of JSON to this descriptor, and close it, when the service can be used;"
            " without it the line is logged"
        ),
    )
    parser.add_argument(
        "--session-dir", metavar="DIR", help="directory of the session: logs/, sockets/, auth_token"
    )


def refuse_settings(parser: argparse.ArgumentParser, error: Exception) -> NoReturn:
    """Ends the process with what is wrong. How its command line is written helps nobody there: most settings
    come from whoever started the node."""
    parser.exit(2, f"{parser.prog}: error: {error}\n")


def setup_logging(level: str, service_name: str) -> None:
    """Sends the process's log to standard error, one line per message, with time, level, service and process
    id. The level is that of our own messages. Of libraries only warnings come: a service that cannot start
    is told with its log, which is to begin with what is wrong.

    Raises ValueError for a level that is not one of LOG_LEVELS.
    """
    if level not in LOG_LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LOG_LEVELS)}, got {level!r}")
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter(
            f"%(asctime)s.%(msecs)03d %(levelname)-7s {service_name}[%(process)d] %(name)s: %(message)s",
            "%Y-%m-%d %H:%M:%S",
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for ours in ("ray_mono", "__main__"):
        logging.getLogger(ours).setLevel(level.upper())


def announce_ready(ready_fd: int | None, info: Mapping[str, Any]) -> None:
    """Tells the launcher that the service can be used: one line of JSON with our "pid" added, and the
    descriptor is closed.

    Without a descriptor the line goes to the log. Raises OSError if the launcher is gone (the service should
    end then).
    """
    line = json.dumps({"pid": os.getpid(), **info})
    if ready_fd is None:
        logger.info("ready: %s", line)
        return
    with open(ready_fd, "w") as file:
        file.write(line + "\n")
    logger.info("ready, launcher told: %s", line)


def failure_told(failure: BaseException) -> str:
    """As its service's last line ends; the reaper reads it there."""
    return f"{process.AFTER_FAILURE}{_in_one_line(failure) or type(failure).__name__}"


def _in_one_line(text: object) -> str:
    return " ".join(str(text).splitlines())


class Service:
    """What a service's main coroutine is given. Everything here belongs to the loop's thread."""

    def __init__(self, name: str, ready_fd: int | None) -> None:
        self.name = name
        self.tasks = BackgroundTasks(self._on_task_error)
        """For everything that runs beside the main coroutine; an exception in one ends the process."""
        self._ready_fd = ready_fd
        self._stopping = asyncio.Event()
        self._stop_reason = "it has nothing more to do"
        self._is_signalled = False
        # Whether main came as far as until_stopped(): from there on it closes by itself, before that it must
        # be cancelled.
        self._is_up = False
        self._failure: BaseException | None = None
        self._dump: Callable[[], Mapping[str, Any] | Awaitable[Mapping[str, Any]]] = dict

    def announce_ready(self, info: Mapping[str, Any]) -> None:
        """As the function of this name; once."""
        announce_ready(self._ready_fd, info)
        self._ready_fd = None

    def on_dump(self, dump: Callable[[], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]) -> None:
        """dump() gives the state, as JSON can carry it, that SIGUSR1 writes to the log; it may be a coroutine
        function."""
        self._dump = dump

    def stop(self, reason: str) -> None:
        """Begins the end: until_stopped() returns. Later reasons are ignored."""
        if not self._stopping.is_set():
            logger.info("stopping: %s", reason)
            self._stop_reason = reason
            self._stopping.set()

    async def until_stopped(self) -> None:
        """Waits for a signal, stop(), or the failure of a background task, as long as it takes."""
        self._is_up = True
        await self._stopping.wait()

    def _on_task_error(self, exception: BaseException, task_name: str) -> None:
        logger.critical("background task %s failed", task_name, exc_info=exception)
        self._failure = self._failure or exception
        self.stop(f"background task {task_name} failed")

    def _on_signal(self, signum: signal.Signals) -> None:
        if self._is_signalled:
            _end_at_once(f"{signum.name} while stopping")
        self._is_signalled = True
        self.stop(signum.name)

    async def _write_dump(self) -> None:
        try:
            state = self._dump()
            if not isinstance(state, Mapping):
                state = await state
            logger.info("state: %s", json.dumps(state, default=str))
        except Exception:
            # Looking at a service must not end it.
            logger.exception("the state could not be written")

    async def run(self, main: Callable[[Service], Awaitable[None]]) -> int:
        """Runs main until it returns or fails, with the signals bound. Returns the exit code. For
        run_service."""
        loop = asyncio.get_running_loop()
        for signum in STOP_SIGNALS:
            loop.add_signal_handler(signum, self._on_signal, signum)
        loop.add_signal_handler(signal.SIGUSR1, lambda: self.tasks.spawn(self._write_dump(), "dump"))
        main_task = asyncio.ensure_future(main(self))
        stop_wait = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((main_task, stop_wait), return_when=asyncio.FIRST_COMPLETED)
            if not main_task.done():
                if not self._is_up:
                    main_task.cancel()
                await asyncio.wait((main_task,), timeout=STOP_TIMEOUT_S)
            if not main_task.done():
                _end_at_once(f"closing took longer than {STOP_TIMEOUT_S:g} s")
            if not main_task.cancelled():
                main_task.result()
        except LostPlaceError as error:
            self._failure = self._failure or error
        except Exception as error:
            logger.critical("%s failed", self.name, exc_info=True)
            self._failure = self._failure or error
        finally:
            stop_wait.cancel()
            self._stopping.set()
            for name in await self.tasks.close():
                logger.warning("background task %s does not end; left behind", name)
            self._leave_loop(loop)
        # The last line of a log is what its reader sees first.
        in_order = f"{process.IN_ORDER}{_in_one_line(self._stop_reason)}"
        told = in_order if self._failure is None else failure_told(self._failure)
        logger.info("%s ended%s", self.name, told)
        if isinstance(self._failure, FinalError):
            return process.FINAL_STATUS
        if isinstance(self._failure, LostPlaceError):
            return process.LOST_PLACE_STATUS
        return 1 if self._failure else 0

    def _leave_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Signals mean the same until the process has ended."""
        every = (*STOP_SIGNALS, signal.SIGUSR1)
        signal.pthread_sigmask(signal.SIG_BLOCK, every)
        for signum in every:
            loop.remove_signal_handler(signum)
        for signum in STOP_SIGNALS:
            signal.signal(signum, lambda number, _: self._on_signal(signal.Signals(number)))
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, every)


def _end_at_once(reason: str) -> NoReturn:
    """Ends the process where an orderly end is not to be had."""
    logger.critical("ending at once: %s", reason)
    for handler in logging.getLogger().handlers:
        with contextlib.suppress(Exception):
            handler.flush()
    os._exit(1)


def run_service(name: str, main: Callable[[Service], Awaitable[None]], arguments: argparse.Namespace) -> int:
    """Runs a service to its end in this process's main thread; returns the exit code.

    arguments: what add_common_arguments added; this function sets up logging from it. main: a coroutine
    function of the Service.
    """
    setup_logging(arguments.log_level, name)
    parent_pid = process.parent_pid_from_environment()
    if parent_pid is not None or arguments.ready_fd is not None:
        process.set_pdeathsig(signal.SIGKILL, parent_pid)
    if arguments.ready_fd is not None:
        # Ours alone: a child that inherited it would keep the launcher waiting after our death.
        os.set_inheritable(arguments.ready_fd, False)

    async def serve() -> int:
        return await Service(name, arguments.ready_fd).run(main)

    return asyncio.run(serve())
