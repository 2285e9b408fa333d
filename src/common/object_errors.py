"""Errors about objects: lost, freed, or with no room for them. Part of the list in exceptions.py."""

from __future__ import annotations

from ray_mono.common.ray_error import RayError
from ray_mono.common.store_messages import DISK_FULL, FILE_SYSTEM_FULL, remedy


class ObjectLostError(RayError):
    """The object cannot be had any more.

    Args:
        object_ref_hex: its id.
        owner_address: of the worker that owned it, printable, or None.
        call_site: where the reference was made, or "".
        detail: more about how it was lost; "" for the class's own sentence.
    """

    sentence = "all its copies are lost, and it cannot be computed again."

    def __init__(
        self, object_ref_hex: str, owner_address: object = None, call_site: str = "", detail: str = ""
    ) -> None:
        super().__init__(object_ref_hex, owner_address, call_site, detail)
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site
        self.detail = detail

    def __str__(self) -> str:
        made = f" (made at {self.call_site})" if self.call_site else ""
        owner = f" of {self.owner_address}" if self.owner_address else ""
        return f"The object {self.object_ref_hex}{owner}{made} cannot be had: {self.detail or self.sentence}"


class ObjectFetchTimedOutError(ObjectLostError):
    """No node that is said to have a copy sent it in time."""

    sentence = "no node that is said to have a copy answered in time."


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """A reference was used after the object was freed: a bug of ours, or an id that was passed on by other
    means than references.
    """

    sentence = (
        "it was freed, because its owner knew of no reference any more. References must travel as ObjectRefs."
    )


class ObjectFreedError(ObjectLostError):
    """The object was freed by request."""

    sentence = "it was freed by request while references to it were left."


class OwnerDiedError(ObjectLostError):
    """The worker or driver that made the reference is gone, and with it what is known about the object."""

    sentence = "the worker or driver that owned it has ended."


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost, and running its task again did not bring it back.

    Args:
        object_ref_hex: its id.
        reason: a short name of the reason, or None.
        reason_message: the reason in a sentence, or None.
        owner_address, call_site: as for ObjectLostError.
    """

    def __init__(
        self,
        object_ref_hex: str,
        reason: object = None,
        reason_message: str | None = None,
        owner_address: object = None,
        call_site: str = "",
    ) -> None:
        why = reason_message or reason or "the reason is not known"
        detail = f"it was lost, and could not be computed again: {why}."
        super().__init__(object_ref_hex, owner_address, call_site, detail)
        self.reason = reason
        self.reason_message = reason_message
        self.args = (object_ref_hex, reason, reason_message, owner_address, call_site)


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectReconstructionFailedError):
    """The object was lost more often than its task may run again (`max_retries`, `max_task_retries`)."""


class ObjectReconstructionFailedLineageEvictedError(ObjectReconstructionFailedError):
    """The object was lost, and its task had been thrown away: more finished tasks were kept than
    `max_lineage_bytes`."""


class ObjectStoreFullError(RayError):
    """The node's object store is full of objects that are in use. It stayed so while a `put`, a task's return
    or argument, or the copy for a `get` waited for room.
    """

    def __str__(self) -> str:
        told = super().__str__()
        what = (
            "It is not the store that is full" if FILE_SYSTEM_FULL in told else "All that is in it is in use"
        )
        return f"{told or 'The object store is full.'}\n{what}: {remedy(told)}."


class OutOfDiskError(RayError):
    """The object store is full, and so is the disk it spills to."""

    def __str__(self) -> str:
        hint = "The object store is full, and so is the local disk"
        return f"{super().__str__()}\n{hint}: {remedy(DISK_FULL)}." if self.args else f"{hint}."


def no_room_error(message: str) -> ObjectStoreFullError | OutOfDiskError:
    """What a user is told whom the store refused room with this message."""
    return (OutOfDiskError if DISK_FULL in message else ObjectStoreFullError)(message)


class PlasmaObjectNotAvailable(RayError):
    """The object is not in this node's store."""
