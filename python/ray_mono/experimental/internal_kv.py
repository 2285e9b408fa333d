"""The cluster's key-value store, under the names that programs for Ray call.

Keys and values are bytes, or strings that stand for their UTF-8. Keys live in a namespace; None is one of its
own. All of it lies with the cluster's other tables: it outlives drivers, and a head that is started again.

Every function raises RaySystemError where this process is not connected, and TypeError for what is neither
bytes nor string.
"""

from __future__ import annotations

from typing import Any

from ray_mono.core_worker.global_state import GlobalState
from ray_mono.core_worker.process import current

# Apart from what ray_mono itself keeps in the store: functions, and more.
_PREFIX = b"user:"


def _internal_kv_initialized() -> bool:
    """Whether this process is connected."""
    return current.core is not None


def _internal_kv_reset() -> None:
    """Nothing: the connection belongs to the session, and `shutdown` ends it."""


def internal_kv_get_gcs_client() -> Any:
    """The cluster's tables (core_worker/global_state.py); None where this process is not connected."""
    core = current.core
    return None if core is None else core.global_state


def _internal_kv_get(key: str | bytes, *, namespace: str | bytes | None = None) -> bytes | None:
    """The value; None where there is none."""
    return _state().kv_get(_namespace(namespace), _bytes("key", key))


def _internal_kv_exists(key: str | bytes, *, namespace: str | bytes | None = None) -> bool:
    return _state().kv_exists(_namespace(namespace), _bytes("key", key))


def _internal_kv_put(
    key: str | bytes, value: str | bytes, overwrite: bool = True, *, namespace: str | bytes | None = None
) -> bool:
    """Writes, unless the key exists and `overwrite` is False. Returns whether the key existed already."""
    if not isinstance(overwrite, bool):
        raise TypeError(f"overwrite must be True or False, got {overwrite!r}")
    added = _state().kv_put(_namespace(namespace), _bytes("key", key), _bytes("value", value), overwrite)
    return not added


def _internal_kv_del(
    key: str | bytes, *, del_by_prefix: bool = False, namespace: str | bytes | None = None
) -> int:
    """Deletes the key, or every key that begins with it. Returns how many there were."""
    return _state().kv_delete(_namespace(namespace), _bytes("key", key), bool(del_by_prefix))


def _internal_kv_list(prefix: str | bytes, *, namespace: str | bytes | None = None) -> list[bytes]:
    """The keys that begin with `prefix`, sorted."""
    return _state().kv_keys(_namespace(namespace), _bytes("prefix", prefix))


def _state() -> GlobalState:
    return current.require().global_state


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"{name} must be bytes or a string, got {value!r} of type {type(value).__name__}")


def _namespace(namespace: str | bytes | None) -> bytes:
    return _PREFIX + (b"" if namespace is None else _bytes("namespace", namespace))
