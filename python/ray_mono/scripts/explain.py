"""`ray-mono explain`: why an object, a task, an actor or a placement group waits, for people at a shell."""

from __future__ import annotations

import json
import logging
import re
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
SHORT_DIGITS_MIN = 8
"""As many as sentences show of an id."""
SLOW_S = 3.0
"""So long the head may take before somebody at a shell is told that it is waited for."""


def explain(id_hex: str | None, as_json: bool, address: str | None, redis_password: str | None) -> None:
    digits = "" if id_hex is None else _digits(id_hex)
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
            told = core.explain(*_named(core, digits)) if digits else core.explain_all()
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


def _digits(given: str) -> str:
    """Of an id as it is printed: bare, in the brackets of its kind, or as short as in sentences."""
    digits = re.sub(r"^[A-Za-z]+\((.*)\)$", r"\1", given.strip()).rstrip("…").lower()
    if not re.fullmatch(r"[0-9a-f]+", digits) or len(digits) < SHORT_DIGITS_MIN:
        sizes = ", ".join(f"{2 * size} for {kind}s".replace("_", " ") for size, kind in KINDS.items())
        raise click.BadParameter(
            f"ID must be an id in hex, with as many digits as: {sizes}; or at least the first"
            f" {SHORT_DIGITS_MIN} of them; got {given!r}"
        )
    return digits


def _named(core: Any, digits: str) -> tuple[str, bytes]:
    """Kind and id. Of short ones actors, groups and what waits are looked through. Raises BadParameter where
    none begins so, or several do."""
    if len(digits) % 2 == 0 and len(digits) // 2 in KINDS:
        return KINDS[len(digits) // 2], bytes.fromhex(digits)
    ids = [row.placement_group_id.hex() for row in core.placement_groups.rows()]
    ids += [row.actor_id.hex() for row in core.global_state.actors()]
    ids += [link.id for waiting in core.explain_all().groups for link in waiting.example.links]
    found = [each for each in dict.fromkeys(ids) if each.startswith(digits) and len(each) // 2 in KINDS]
    if len(found) != 1:
        told = (
            f"several do: {', '.join(sorted(found))}" if found else "none does; give it with all its digits"
        )
        raise click.BadParameter(f"ID must be that of an actor, a group or what waits; {digits}: {told}")
    return KINDS[len(found[0]) // 2], bytes.fromhex(found[0])
