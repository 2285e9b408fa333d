"""`ray-mono explain`: why an object, a task, an actor or a placement group waits, for people at a shell."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import click

from ray_mono._private.driver.init import init, shutdown
from ray_mono.common.explanation import Explanation
from ray_mono.common.ids import ActorID, ObjectID, PlacementGroupID, TaskID
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
SLOW_S = 3.0
"""So long the head may take before somebody at a shell is told that it is waited for."""


def explain(id_hex: str | None, as_json: bool, address: str | None, redis_password: str | None) -> None:
    asked = None if id_hex is None else _parsed(id_hex)
    options: dict[str, Any] = {} if redis_password is None else {"_redis_password": redis_password}
    with failures.shown():
        slow = threading.Timer(SLOW_S, _say_that_it_waits, [address])
        slow.daemon = True
        slow.start()
        try:
            init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR, **options)
        finally:
            slow.cancel()
        try:
            core = known(current.core, "the core of a driver")
            told = core.explain_all() if asked is None else core.explain(*asked)
        finally:
            shutdown()
    click.echo(json.dumps(told.to_dict(), indent=2) if as_json else str(told))
    if isinstance(told, Explanation) and told.code == "UNKNOWN":
        raise click.exceptions.Exit(1)


def _say_that_it_waits(address: str | None) -> None:
    head = "the head" if address is None else f"the head at {address}"
    click.echo(
        f"{head} has not answered for {SLOW_S:g} s: what waits may wait for that. Asking on.", err=True
    )


def _parsed(id_hex: str) -> tuple[str, bytes]:
    try:
        id_ = bytes.fromhex(id_hex)
    except ValueError:
        id_ = b""
    if len(id_) not in KINDS:
        sizes = ", ".join(f"{2 * size} for {kind}s".replace("_", " ") for size, kind in KINDS.items())
        raise click.BadParameter(f"ID must be an id in hex, with as many digits as: {sizes}; got {id_hex!r}")
    return KINDS[len(id_)], id_
