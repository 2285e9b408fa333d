"""Whose code a signal struck: the runtime's and what that calls of the standard library, or the user's."""

from __future__ import annotations

import sys
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from ray_mono.rpc.interruption import is_in_runtime


def stack(*modules: str) -> Any:
    """Frames of code of these modules, the innermost last."""
    frame: Any = None
    for module in modules:
        frame = SimpleNamespace(f_globals={"__name__": module}, f_back=frame)
    return frame


@pytest.mark.parametrize(
    ("modules", "is_ours"),
    [
        (["__main__"], False),
        (["__main__", "ray_mono.core_worker.objects.putter"], True),
        (["__main__", "ray_mono.core_worker.process.driver", "threading", "contextlib"], True),
        (["__main__", "asyncio.runners", "selectors"], False),
        (["ray_mono.core_worker.task_execution.executor", "users_module", "threading"], False),
        (["__main__", "ray_mono.core_worker.values.serialization", "cloudpickle.cloudpickle"], False),
        (["__main__", "ray_mono.util.multiprocessing.pool", "threading"], False),
        (["threading"], False),
        (["__main__", "weakref"], True),  # a finalizer is called: an exception would be dropped
        (["__main__", "weakref", "users_module"], False),
        (["__main__", "ray_mono.common.code_pickler", "pickle"], True),
        (["__main__", "ray_mono.rpc.framing"], True),
        (["__main__", "ray_mono.protobuf.common_pb2"], True),
    ],
)
def test_the_first_that_is_not_the_standard_librarys_decides(modules: list[str], is_ours: bool) -> None:
    assert is_in_runtime(stack(*modules)) is is_ours


def test_of_a_real_frame() -> None:
    frame: FrameType | None = sys._getframe()
    assert not is_in_runtime(frame)
