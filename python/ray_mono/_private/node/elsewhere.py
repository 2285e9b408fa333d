"""Nodes whose sessions lie in another base than the usual one, for those who are not told that base.

`init(address=…)` looks for the secret here, and `stop --address` for the reaper.

    <usual base>/elsewhere.<uid>.<first 16 of the node's id>.json
        a copy of the node's record; its reaper removes it
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ray_mono._private.node.session import NodeRecord, SessionError, open_session, prepared, usual_base

logger = logging.getLogger(__name__)


def entry_of(session_dir: str | Path, node_id: str) -> Path | None:
    """Where a node is written down; None where its session lies in the usual base."""
    base = usual_base()
    return None if Path(session_dir).parent == base else base / f"elsewhere.{os.getuid()}.{node_id[:16]}.json"


def write_down(record: NodeRecord) -> None:
    """Does nothing if the usual base cannot be used: then nobody looks there either."""
    entry = entry_of(record.session_dir, record.node_id)
    if entry is not None:
        try:
            with prepared(entry.parent):
                record.write(entry)
        except SessionError as error:
            logger.debug("%s", error)


def nodes_elsewhere() -> Iterator[NodeRecord]:
    """Those that run. What others left there is not believed, and what is over is removed."""
    for entry in sorted(usual_base().glob(f"elsewhere.{os.getuid()}.*.json")):
        with contextlib.suppress(SessionError):
            record = NodeRecord.read(entry)
            open_session(Path(record.session_dir))
            if record.reaper.is_alive():
                yield record
                continue
        with contextlib.suppress(OSError):
            entry.unlink()
