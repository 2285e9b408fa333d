"""A worker process. It joins its node, runs tasks until it is told to end, and dies with its node's raylet or
store.

Usually it is forked from the template (worker_template.py), which calls run_worker. To start one by hand, for
a debugger:

    python -m ray_mono.core_worker.process.worker --raylet-socket <session>/sockets/raylet \\
        --gcs-address HOST:PORT --session-dir <session>
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import json
import logging
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ray_mono.common import ids
from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.context import JobContext, TaskContext, TaskKind
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.process import current
from ray_mono.core_worker.process.registration import Registration
from ray_mono.core_worker.process.termination import Termination
from ray_mono.core_worker.process.worker_config import WorkerConfig
from ray_mono.core_worker.process.worker_exit import OrderlyExit
from ray_mono.core_worker.task_errors import TITLE, ActorExit
from ray_mono.core_worker.task_execution.execution import Execution
from ray_mono.core_worker.task_execution.exit_reports import report_exit
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc import auth, signal_handlers

logger = logging.getLogger(__name__)

STDERR = 2
LOOK_AT_LEASE_MIN_S, LOOK_AT_LEASE_MAX_S = 0.2, 60.0


def run_worker(config: WorkerConfig) -> NoReturn:
    """Joins the node, runs tasks, and ends the process."""
    signal.signal(signal.SIGINT, lambda signum, frame: None)  # Ctrl-C in a terminal is the driver's
    faulthandler.enable(STDERR, all_threads=False)  # the driver sees where the user's code crashed
    secret = auth.find_secret(None, config.session_dir)
    board = StartBoard(config.worker_id)
    try:
        with Registration(
            common_pb2.WORKER,
            config.worker_id,
            config.session_dir,
            secret,
            config.node_host,
            config.raylet_socket,
            config.gcs_address,
        ) as registration:
            core = registration.join(
                job=JobContext(b""),
                startup_token=config.startup_token,
                board_fd=board.fd,
                on_node_lost=_end_with_node,
            )
    except RaySystemError as error:
        logger.error("%s", error)
        os._exit(1)
    running = Running()
    job = _Job(core)
    registration.gcs_channel.on_return(job.gcs_is_back)
    execution = core.execute(lambda parts: Execution(parts, running, job.bind, board))
    with core.env.lock:
        registration.gcs_channel.on_other_cluster(
            lambda: core.adoption.tell(held=execution.receiver.told_again())
        )
    signal.signal(signal.SIGINT, execution.interrupter.on_signal)
    termination = Termination(core.env, running)
    termination.install()
    signal_handlers.install(registration.reactor, interrupts=False)
    current.set(core)
    signal.signal(signal.SIGUSR1, lambda signum, frame: logger.info("state: %s", json.dumps(core.describe())))
    with core.env.lock:
        registration.servicer.execute(execution)
        _look_at_lease(core, execution, board)
    _run(core, execution, termination)


def _run(core: CoreWorker, execution: Execution, termination: Termination) -> NoReturn:
    """Runs the tasks that come until the worker is told to end. Then it ends."""
    execution.executor.run()
    termination.await_calls()
    with core.env.lock:
        execution.running.end()
        execution.receiver.give_back()
        core.env.reactor.flush()
        left = execution.running.take_leave()
    if left:
        report_exit(core.env, ActorExit())
    OrderlyExit(core, execution).leave()


def _look_at_lease(core: CoreWorker, execution: Execution, board: StartBoard) -> None:
    """A worker of an actor ends when the actor may be elsewhere, also in the middle of a call: its template
    and its raylet, which would kill it, may be dead or stand still. Lock held."""
    left_s = board.time_left_s()
    if left_s == 0.0 and core.context.actor_id():
        execution.executor.out_of_time()
    delay_s = min(max(left_s, LOOK_AT_LEASE_MIN_S), LOOK_AT_LEASE_MAX_S)
    core.env.reactor.call_later(delay_s, lambda: _look_at_lease(core, execution, board))


def _end_with_node(core: CoreWorker, reason: str) -> None:
    """Ends the process, since nothing that this worker does reaches anybody any more."""
    os._exit(1)


class _Job:
    """The job that this worker serves: where its modules are, and what its workers set up first.

    A worker is of one job from its first task on. Its raylet leases it to no other, and an actor is of the
    job that made it, whoever calls it. What the code of a job leaves behind (modules, variables, threads)
    ends with the process.
    """

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self._job_id = b""

    def bind(self, spec: Any) -> None:
        """Called before the first task. It makes this worker its job's, and gives it its runtime environment,
        which all later tasks share.

        Raises RpcError if neither the GCS nor the caller answers. Then it is called again before the next
        task.
        """
        core, env = self._core, self._core.env
        job_id, runtime_env = spec.job_id, spec.runtime_env
        # First, so that nothing that is published is missed.
        self._subscribe(job_id)
        setup = core.job_code.setup(job_id, spec.caller)
        config, own_env = json.loads(setup.config_json or "{}"), json.loads(runtime_env or "{}")
        job = JobContext(
            job_id,
            setup.namespace,
            spec.outlives_job,
            config.get("default_actor_lifetime", ""),
            _merged(config.get("runtime_env") or {}, own_env),
            runtime_env,
            config.get("script", ""),
            setup.config_json,
        )
        # The task of threads that user code starts. Its id is random: the driver's root task and other
        # workers count from one as well, and ids must not clash.
        core.enter_job(job, TaskContext(os.urandom(8) + job.nil_actor, TaskKind(job_id)))
        self._apply(config, own_env.get("env_vars", {}))
        for stream in (sys.stdout, sys.stderr):
            # A full disk must not cost the task. The label stays in the buffer, ahead of what is printed.
            with contextlib.suppress(OSError):
                print(f":job_id:{job_id.hex()}", file=stream, flush=True)
        with env.lock:
            core.worker_runs.learn(setup.run_keys)

    def gcs_is_back(self) -> None:
        """Lock held."""
        if self._job_id:
            self._core.worker_runs.read_again(self._job_id)

    def _subscribe(self, job_id: bytes) -> None:
        """Once, also if `bind` is called again."""
        if self._job_id:
            return
        core, env = self._core, self._core.env
        self._job_id = job_id
        subscription = gcs_pb2.SubscribeRequest(
            channels=[
                gcs_pb2.ChannelFilter(channel=gcs_pb2.RUN_ON_WORKERS, keys=[job_id]),
                gcs_pb2.ChannelFilter(channel=gcs_pb2.COLLECT_EVENTS, keys=[env.worker_id]),
            ]
        )

        def published(message: Any) -> None:
            if message.channel == gcs_pb2.COLLECT_EVENTS:
                core.collect_events(message.payload)
            else:
                core.worker_runs.learn([message.payload])

        env.gcs.Subscribe.start(subscription, published, lambda error: None)

    def _apply(self, job_config: dict[str, Any], variables: dict[str, str]) -> None:
        """Sets up what the job's config names: sys_path goes before the worker's own path, sys_path_last
        behind it, and each "module:function" of setup is called.

        variables: those of what runs here. They are set beside the job's, and win.
        """
        # These are imported now, while no file of the user's can stand in for what they import.
        setup = [load_function(name) for name in job_config.get("setup", [])]
        for path in reversed(job_config.get("sys_path", [])):
            if path not in sys.path:
                sys.path.insert(0, path)
        sys.path += [path for path in job_config.get("sys_path_last", []) if path not in sys.path]
        for name, value in (*job_config.get("env_vars", {}).items(), *variables.items()):
            # ${NAME} in a value is what NAME is on this node.
            os.environ[name] = re.sub(r"\$\{\w+\}", "", os.path.expandvars(value))
        for function in setup:
            function(job_config)


def _merged(jobs_env: dict[str, Any], own_env: dict[str, Any]) -> str:
    """The runtime environment of what runs here, as JSON: the job's, with its own beside it. Its own
    variables win."""
    variables = {**jobs_env.get("env_vars", {}), **own_env.get("env_vars", {})}
    merged = {**jobs_env, **own_env, "env_vars": variables}
    told = {name: value for name, value in merged.items() if value}
    return json.dumps(told) if told else "{}"


def load_function(name: str) -> Callable[[dict[str, Any]], object]:
    """The function that "module:function" names."""
    module_name, _, function_name = name.partition(":")
    function: Callable[[dict[str, Any]], object] = getattr(
        importlib.import_module(module_name), function_name
    )
    return function


def main() -> int:
    """Starts a worker by hand; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="worker", description="A worker of a node, outside of the node's worker template."
    )
    parser.add_argument("--raylet-socket", required=True, help="Unix socket of the node's raylet")
    parser.add_argument("--gcs-address", required=True, help="unix:/path or host:port of the GCS")
    parser.add_argument("--session-dir", required=True, help="the session's directory")
    parser.add_argument(
        "--node-host",
        default="127.0.0.1",
        help="address on which other nodes reach this process (default: %(default)s)",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    arguments = parser.parse_args()
    logging.basicConfig(level=arguments.log_level.upper())
    from setproctitle import setproctitle

    setproctitle(f"{TITLE}IDLE")
    run_worker(
        WorkerConfig(
            raylet_socket=arguments.raylet_socket,
            gcs_address=arguments.gcs_address,
            session_dir=arguments.session_dir,
            worker_id=ids.WorkerID.from_random(random.SystemRandom()).binary(),
            log_level=arguments.log_level,
            node_host=arguments.node_host,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
