"""`ray-mono explain`: why an object, a task, an actor or a placement group waits, for people at a shell."""

from __future__ import annotations

import json
import logging
from typing import Any

import click

from ray_mono._private.driver.init import init, shutdown
from ray_mono.common.ids import ActorID, ObjectID, PlacementGroupID, TaskID, object_id_bytes
from ray_mono.common.our_bug import known
from ray_mono.core_worker.process import current
from ray_mono.scripts import failures

KINDS: dict[int, str] = {
    ActorID.SIZE: "actor",
    PlacementGroupID.SIZE: "placement_group",
    TaskID.SIZE: "task",
    ObjectID.SIZE: "object",
}
"""By the bytes of an id."""


def explain(id_hex: str, as_json: bool, address: str | None, redis_password: str | None) -> None:
    kind, id_ = _parsed(id_hex)
    if kind == "task":
        # Whoever submitted it knows it by its first return.
        kind, id_ = "object", object_id_bytes(id_, 1)
    options: dict[str, Any] = {} if redis_password is None else {"_redis_password": redis_password}
    with failures.shown():
        init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR, **options)
        try:
            explanation = known(current.core, "the core of a driver").explain(kind, id_)
        finally:
            shutdown()
    click.echo(json.dumps(explanation.to_dict(), indent=2) if as_json else explanation.text)
    if explanation.code == "UNKNOWN":
        raise click.exceptions.Exit(1)


def _parsed(id_hex: str) -> tuple[str, bytes]:
    try:
        id_ = bytes.fromhex(id_hex)
    except ValueError:
        id_ = b""
    if len(id_) not in KINDS:
        sizes = ", ".join(f"{2 * size} for {kind}s".replace("_", " ") for size, kind in KINDS.items())
        raise click.BadParameter(f"ID must be an id in hex, with as many digits as: {sizes}; got {id_hex!r}")
    return KINDS[len(id_)], id_
