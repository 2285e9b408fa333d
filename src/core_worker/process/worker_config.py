"""What a worker process is told when it starts, by its template or on a command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerConfig:
    """Settings of one worker process."""

    raylet_socket: str
    """Unix socket path of the node's raylet. The raylet's answer tells everything else about the node."""
    gcs_address: str
    """"unix:/path" or "host:port"."""
    session_dir: str
    worker_id: bytes
    startup_token: int = 0
    """The number by which the raylet ordered it from the template; 0 for a worker started by hand."""
    log_level: str = "info"
    node_host: str = "127.0.0.1"
    """The node's address, on which this process answers peers on other nodes."""
