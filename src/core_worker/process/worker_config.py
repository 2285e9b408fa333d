"""What a worker process is told when it starts, by the template's fork or on a command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerConfig:
    """Settings of one worker process."""

    raylet_socket: str
    """Unix socket path of the node's raylet; everything else about the node is in its answer."""
    gcs_address: str
    """"unix:/path" or "host:port"."""
    session_dir: str
    worker_id: bytes
    job_id: bytes = b""
    """The job the worker serves; empty until its first lease."""
    startup_token: int = 0
    """Of the template's fork; 0 when started by hand."""
    log_level: str = "info"
    node_host: str = "127.0.0.1"
    """The node's address: where this process answers peers on other nodes."""
