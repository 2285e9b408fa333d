"""Errors as users meet them: caught by the type that was raised there, printed with the traceback of there,
and able to travel.
"""

from __future__ import annotations

import builtins
import dataclasses
import pickle
import threading
from typing import Any

import pytest

from ray_mono.common import exceptions
from ray_mono.common.exceptions import RayError, RayTaskError, UnserializableException
from ray_mono.rpc.surface import RpcError as SurfaceError
from ray_mono.rpc.surface import StatusCode


class OddConstructor(Exception):
    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")
        self.left = left

    def sum_with(self, other: int) -> int:
        return self.left + other


class HoldsLock(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()
        self.kept = 5


class Final(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("final")


class HasSlots(Exception):
    __slots__ = ("detail",)

    def __init__(self, detail: str) -> None:
        self.detail = detail


class OwnReduce(Exception):
    def __reduce_ex__(self, protocol: Any) -> Any:
        return OwnReduce, ("again",)


class HidesNames(Exception):
    @property
    def cause(self) -> str:
        return "mine"

    @property
    def pid(self) -> str:
        return "mine"


class OwnArgs(Exception):
    """Its `args` cannot be set, and are not what the constructor was given."""

    @property
    def args(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("fixed",)


class BadText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class RefusesToLoad(Exception):
    def __reduce__(self) -> Any:
        return int, ("not a number",)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


def raised_by(cause: BaseException) -> RayTaskError:
    return RayTaskError(
        "f", "Traceback (most recent call last):\nOops: here\n", cause, pid=12, ip="10.0.0.1"
    ).as_instanceof_cause()


def travelled(error: BaseException) -> Any:
    return pickle.loads(pickle.dumps(error, protocol=5))


@pytest.mark.parametrize(
    "cause",
    [
        ValueError("boom", 1),
        KeyError("k"),
        OddConstructor(1, 2),
        HasSlots("d"),
        OwnReduce("x"),
        Frozen(7),
        HidesNames(),
        OwnArgs("x"),
        OwnArgs(threading.Lock()),
    ]
    + [
        ExceptionGroup("many", [ValueError("a")]),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
        StopIteration(3),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_an_error_is_caught_by_its_original_type_before_and_after_it_travels(cause: Exception) -> None:
    error = raised_by(cause)
    for each in (error, travelled(error), travelled(travelled(error))):
        assert isinstance(each, type(cause)) and isinstance(each, RayTaskError)
        assert type(vars(each)["cause"]) is type(cause)
        assert "Oops: here" in str(each) and "pid=12" in str(each) and "ip=10.0.0.1" in str(each)
        assert type(each).__name__ == f"RayTaskError({type(cause).__name__})"
        assert repr(each)
        with pytest.raises(type(cause)):
            raise each


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, kind in vars(builtins).items()
        if isinstance(kind, type)
        and issubclass(kind, Exception)
        and not issubclass(kind, (UnicodeError, ExceptionGroup))
    ),
)
def test_every_builtin_error_can_be_combined(name: str) -> None:
    kind = getattr(builtins, name)
    assert isinstance(travelled(raised_by(kind("text"))), kind)


def test_attributes_and_methods_of_the_original_are_there() -> None:
    error: Any = travelled(raised_by(OddConstructor(1, 2)))
    assert error.left == 1 and error.sum_with(4) == 5
    missing: Any = travelled(raised_by(FileNotFoundError(2, "No such file", "/nowhere")))
    assert (missing.errno, missing.strerror, missing.filename) == (2, "No such file", "/nowhere")
    decode: Any = travelled(raised_by(UnicodeDecodeError("utf-8", b"x", 0, 1, "why")))
    assert (decode.encoding, decode.start, decode.reason) == ("utf-8", 0, "why")
    no_module: Any = travelled(raised_by(ModuleNotFoundError("none", name="gone", path="p")))
    assert (no_module.name, no_module.path) == ("gone", "p")
    frozen: Any = travelled(raised_by(Frozen(7)))
    assert frozen.code == 7
    with pytest.raises(AttributeError):
        error.nothing_of_this_name  # noqa: B018


def test_an_unpicklable_attribute_is_left_behind_and_the_type_stays() -> None:
    error = travelled(raised_by(HoldsLock("text")))
    assert isinstance(error, HoldsLock)
    assert error.kept == 5 and not hasattr(error, "lock")
    assert isinstance(travelled(raised_by(ValueError(threading.Lock()))), ValueError)


def test_an_error_that_fails_to_pickle_or_print_arrives_all_the_same() -> None:
    error = travelled(RayTaskError("f", "remote text", RefusesToLoad("told you")))
    assert type(error) is RayTaskError and "remote text" in str(error)
    assert "told you" in str(error.cause)
    assert isinstance(travelled(raised_by(BadText())), BadText)


def test_an_error_whose_module_is_missing_at_the_receiver_keeps_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = pickle.dumps(raised_by(OddConstructor(1, 2)))
    monkeypatch.delattr(f"{__name__}.OddConstructor")
    error = pickle.loads(packed)
    assert type(error) is RayTaskError
    assert isinstance(error.cause, UnserializableException) and "1 and 2" in str(error.cause)


def test_a_type_that_cannot_be_subclassed_gives_a_plain_task_error() -> None:
    error = raised_by(Final("x"))
    assert type(error) is RayTaskError and isinstance(error.cause, Final)
    assert type(travelled(error)) is RayTaskError


def test_a_remote_keyboard_interrupt_does_not_pass_for_one_here() -> None:
    assert not isinstance(raised_by(KeyboardInterrupt()), KeyboardInterrupt)


def test_a_failed_result_passed_on_keeps_the_first_cause_and_both_tracebacks() -> None:
    inner = raised_by(ValueError("boom"))
    outer = RayTaskError("g", f"while asking:\n{inner}", inner).as_instanceof_cause()
    assert isinstance(outer, ValueError) and type(outer.cause) is ValueError
    assert "ray_mono::g()" in str(outer) and "ray_mono::f()" in str(outer)


def test_combined_types_are_made_once() -> None:
    assert type(raised_by(ValueError("a"))) is type(raised_by(ValueError("b")))


def test_a_system_error_as_cause_is_caught_by_its_type() -> None:
    cause = exceptions.ActorDiedError("it was killed", "ab" * 16)
    error = travelled(raised_by(cause))
    assert isinstance(error, exceptions.ActorDiedError) and isinstance(error, RayTaskError)
    assert error.actor_id is None, "of the task that raised, not of the dead actor"


EXAMPLES: list[RayError] = [
    exceptions.ActorDiedError(),
    exceptions.ActorDiedError("it was killed", "ab" * 16),
    exceptions.ActorDiedError(RayTaskError("A.__init__", "tb", ValueError("v"), actor_id="cd" * 16)),
    exceptions.ActorUnavailableError("its node does not answer", b"\x01" * 16),
    exceptions.RayActorError("ab" * 16, "gone", True, False),
    exceptions.ObjectLostError("ef" * 28, "10.0.0.1:7", "here.py:1", "its node died"),
    exceptions.ObjectReconstructionFailedError("ef" * 28, "MAX_ATTEMPTS", "tried 3 times"),
    exceptions.OwnerDiedError("ef" * 28),
    exceptions.TaskCancelledError("ab" * 24, "by its driver"),
    exceptions.RaySystemError("not connected", "tb"),
    exceptions.RpcError("refused", 16),
    exceptions.ObjectStoreFullError("put of 5 GB, capacity 1 GB"),
    exceptions.RuntimeEnvSetupError("pip failed"),
    exceptions.CrossLanguageError("java.lang.Exception"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_what_is_known_about_a_failure_travels(error: RayError) -> None:
    again = travelled(error)
    assert type(again) is type(error) and str(again) == str(error)
    assert {name: str(value) for name, value in vars(again).items()} == {
        name: str(value) for name, value in vars(error).items()
    }


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_error_can_be_made_printed_and_pickled(name: str) -> None:
    kind = getattr(exceptions, name)
    assert issubclass(kind, RayError)
    if kind is not RayTaskError:
        error = travelled(kind("text"))
        assert type(error) is kind and str(error)


def test_kinds_are_those_that_programs_catch() -> None:
    assert issubclass(exceptions.GetTimeoutError, TimeoutError)
    assert issubclass(exceptions.ActorDiedError, exceptions.RayActorError)
    assert issubclass(exceptions.ActorUnavailableError, exceptions.RayActorError)
    assert issubclass(exceptions.OwnerDiedError, exceptions.ObjectLostError)
    assert issubclass(exceptions.ReferenceCountingAssertionError, AssertionError)
    assert issubclass(exceptions.ActorAlreadyExistsError, ValueError)


def test_an_actor_whose_constructor_raised_shows_that_traceback() -> None:
    error = exceptions.ActorDiedError(
        RayTaskError("A.__init__", "the traceback", ValueError("v"), actor_id="cd" * 16)
    )
    assert "the traceback" in str(error) and error.actor_id == "cd" * 16


def test_a_call_that_failed_is_an_error_of_ours_and_travels_as_one() -> None:
    error = SurfaceError(StatusCode.UNAVAILABLE, "the GCS is gone")
    assert isinstance(error, exceptions.RpcError) and isinstance(error, exceptions.RayError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is exceptions.RpcError
    assert (
        (str(again), again.rpc_code) == (str(error), error.rpc_code) == ("UNAVAILABLE: the GCS is gone", 14)
    )
