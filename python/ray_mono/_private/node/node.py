"""One node of a cluster: its processes, from the first to the last, or a driver's view of a node that runs
already.

Everything about the node is decided first (`node_plan`). Then a reaper is launched and starts all services at
once: each waits by itself for the peers that it needs. The node runs when the last of them is ready; its
record in the session directory says so to others. Its processes end with the reaper, and the reaper ends with
this process, unless the node was detached (`start` without --block).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray_mono._private.node import elsewhere, services
from ray_mono._private.node.bootstrap import check_versions, local_sessions, record_current_cluster
from ray_mono._private.node.dead_nodes import remove_dead_nodes, remove_left_store_files
from ray_mono._private.node.full_disk import full_disk_explained
from ray_mono._private.node.node_plan import NodePlan, plan_head, plan_member
from ray_mono._private.node.parameter import RayParams
from ray_mono._private.node.reaper_client import ReaperHandle, ServiceStartError, why_ended
from ray_mono._private.node.session import NodeRecord, base_directory, open_session
from ray_mono.common.our_bug import known

# Imports take long on a busy machine. A service that has not answered by then never will.
SERVICE_START_TIMEOUT_S = 60.0


class Node:
    """The processes of one node, which this object starts.

    With connect_only it is the view of a driver that joins the node that runs on this machine.
    """

    def __init__(
        self,
        ray_params: RayParams,
        head: bool = False,
        *,
        connect_only: bool = False,
        shutdown_at_exit: bool = True,
        spawn_reaper: bool = True,
        session_dir: str | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Returns when the node can be used.

        Args:
            session_dir: of the cluster on this machine, if it is known; it holds the secret.
            meanwhile: called while the services start, which leaves a core free.
            spawn_reaper: there is always one, so False is refused. detach() lets the node outlive this
                process.

        Raises ValueError for parameters that cannot be, SessionError, PortInUseError, SecretNotFoundError,
        ConnectionError, VersionMismatchError, and ServiceStartError with the log of a service that did not
        start. No process is left behind then.
        """
        if not spawn_reaper:
            raise ValueError(
                "spawn_reaper=False: there is always a reaper; detach() lets the node outlive this process"
            )
        ray_params.check(head)
        self._head = head
        self._pid = os.getpid()
        self._reaper: ReaperHandle | None = None
        self.resources: dict[str, float] = {}
        """What the node offers, in units; empty with connect_only."""
        self._record_path = ""
        self.record: NodeRecord | None = None
        """What stands in the session directory about it; None with connect_only."""
        if connect_only:
            self._connect(ray_params, session_dir)
            return
        with contextlib.ExitStack() as reserved, full_disk_explained(base_directory(ray_params.temp_dir)):
            plan = plan_head(ray_params, reserved) if head else plan_member(ray_params, session_dir, reserved)
            self._adopt(plan)
            if shutdown_at_exit:
                atexit.register(self.kill_all_processes)
            try:
                self._start(plan, meanwhile)
            except BaseException:
                self.kill_all_processes()
                raise

    # ---- what others ask

    @property
    def head(self) -> bool:
        return self._head

    def is_head(self) -> bool:
        return self._head

    @property
    def address_info(self) -> dict[str, Any]:
        """As `init` returns it."""
        return {
            "node_ip_address": self.node_ip_address,
            "raylet_ip_address": self.node_ip_address,
            "redis_address": None,
            "object_store_address": self.plasma_store_socket_name,
            "raylet_socket_name": self.raylet_socket_name,
            "webui_url": None,
            "session_dir": self.session_dir,
            "metrics_export_port": None,
            "gcs_address": self.gcs_address,
            "address": self.gcs_address,
            "dashboard_agent_listen_port": None,
            "node_id": self.node_id,
        }

    def dead_processes(self) -> list[str]:
        """Services of the node that ended though nobody asked them to, each in a line for people.

        Does not wait.
        """
        if self._reaper is None:
            return []
        return [f"{end.name} ({end.pid}) ended: {end.how}" for end in self._reaper.exits()]

    def why_ended(self) -> str:
        """As its reaper says, also where another process started it: right after it has lost its raylet."""
        suffix = os.path.basename(self.raylet_socket_name).removeprefix("raylet")
        return why_ended(os.path.join(self.logs_dir, f"reaper{suffix}.log"))

    # ---- life

    def start_head_processes(self, reaper: ReaperHandle, plan: NodePlan) -> list[str]:
        """Starts what only the head has; returns the names of those to wait for."""
        services.start_gcs_server(reaper, plan)
        return [services.GCS]

    def start_ray_processes(self, reaper: ReaperHandle, plan: NodePlan) -> list[str]:
        """Starts what every node has; returns the names of those to wait for."""
        services.start_object_manager(reaper, plan)
        services.start_raylet(reaper, plan)
        return [services.OBJECT_MANAGER, services.RAYLET]

    def make_current(self) -> None:
        """Makes the node's cluster the one that `address="auto"` means on this machine for this user."""
        record_current_cluster(known(self.record, "the node's record"))

    def detach(self, rejoin: Sequence[str] = ()) -> None:
        """Lets the node outlive this process: from here on only `stop` ends it. rejoin: the command that
        starts it anew if it loses its place in the cluster."""
        known(self._reaper, "the node's reaper").detach(rejoin, self._record_path)
        atexit.unregister(self.kill_all_processes)
        self._reaper = None

    def until_ended(self, timeout_s: float | None = None) -> bool:
        """Waits for the end of the node, which somebody else brings about.

        False if it still runs after timeout_s.
        """
        return known(self._reaper, "the node's reaper").wait_ended(timeout_s)

    def kill_all_processes(self) -> None:
        """Ends the node's processes and waits for their end.

        Does nothing in a fork, a second time, or with connect_only.
        """
        reaper, self._reaper = self._reaper, None
        if reaper is not None and os.getpid() == self._pid:
            atexit.unregister(self.kill_all_processes)
            reaper.shutdown()

    # ---- how

    def _adopt(self, plan: NodePlan) -> None:
        self.secret = plan.secret
        self.gcs_address = plan.gcs_address
        self.node_ip_address = plan.node_ip_address
        self.resources = dict(plan.resources)
        self._name_paths(
            plan.paths.node_id,
            plan.paths.session.path,
            plan.paths.socket("raylet"),
            plan.paths.socket("plasma_store"),
        )

    def _start(self, plan: NodePlan, meanwhile: Callable[[], object]) -> None:
        paths = plan.paths
        self._reaper = reaper = ReaperHandle.launch(
            paths.session.path, Path(paths.log("reaper", "log")), plan.env, plan.params.grace_period_s
        )
        reaper.own_files(plan.owned_files, paths.session.sockets)
        # In the order in which they are needed: they are ended in the reverse order. The template's imports
        # take longest, and its workers should not have the modules of services in their memory.
        services.start_worker_template(reaper, plan)
        waited = self.start_head_processes(reaper, plan) if self._head else []
        waited += self.start_ray_processes(reaper, plan)
        deadline_s = time.monotonic() + SERVICE_START_TIMEOUT_S
        remove_dead_nodes(local_sessions(plan.params.temp_dir))
        remove_left_store_files()
        meanwhile()
        answers = {}
        for name in waited:
            try:
                answers[name] = reaper.wait_ready(name, max(0.0, deadline_s - time.monotonic()))
            except ServiceStartError as error:
                raise ServiceStartError(f"{error}\nThe logs are in {paths.session.logs}") from None
        # Last, so that its start takes no time from theirs: it reads what was written before it came.
        if plan.params.include_log_monitor:
            services.start_log_monitor(reaper, plan)
        self.record = NodeRecord(
            node_id=paths.node_id,
            is_head=self._head,
            session_dir=self.session_dir,
            node_ip_address=plan.node_ip_address,
            gcs_address=plan.gcs_address,
            raylet_socket=self.raylet_socket_name,
            store_socket=self.plasma_store_socket_name,
            store_file=paths.store_file,
            reaper_pid=reaper.identity.pid,
            reaper_start_ticks=reaper.identity.start_ticks,
            services=answers,
            owned_files=plan.owned_files,
        )
        self._record_path = str(paths.record)
        self.record.write(paths.record)
        elsewhere.write_down(self.record)

    def _connect(self, params: RayParams, session_dir: str | None) -> None:
        from ray_mono._private.node.gcs_query import cluster_secret
        from ray_mono._private.node.local_node import find_local_node, get_cluster_info

        self.gcs_address = known(params.gcs_address, "the address of the cluster to join")
        self.secret = cluster_secret(self.gcs_address, params.redis_password, session_dir)
        info = get_cluster_info(self.gcs_address, self.secret)
        check_versions(f"the cluster at {self.gcs_address}", info.version, info.python_version)
        node = find_local_node(self.gcs_address, self.secret)
        self.node_ip_address = node.host
        session = open_session(Path(node.session_dir))
        self._name_paths(node.node_id.hex(), session.path, node.raylet_socket, node.store_socket)

    def _name_paths(self, node_id: str, session_path: Path, raylet_socket: str, store_socket: str) -> None:
        self.node_id = node_id
        self.session_name = session_path.name
        self.session_dir = str(session_path)
        self.logs_dir = str(session_path / "logs")
        self.raylet_socket_name = raylet_socket
        self.plasma_store_socket_name = store_socket


class LocalNode:
    """Stands for the node in local mode, which has no processes."""

    address_info: dict[str, Any] = {}

    def kill_all_processes(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""
