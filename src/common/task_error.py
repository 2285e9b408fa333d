"""The error that carries an exception from a remote function back to whoever asks for its result.

What the user wants at `get` is to catch the type that was raised there, and to read the traceback of there.
So a RayTaskError holds the exception (`cause`) and the remote traceback as text, and `as_instanceof_cause()`
gives an error of a type made on the spot that is a RayTaskError and the cause's type at once. Making it must
not run the user's constructor, which may want other arguments than it kept, or refuse: instances are made by
the nearest built-in type, and whatever they lack is looked up on the cause.

An error must always arrive, whatever is inside it. Pickling tries, in this order: the cause as it is; its
type, arguments and those attributes that can be pickled; its text (UnserializableException). The cause
travels as bytes of its own, so that a receiver that cannot load it (a module is missing there) still gets
the text, and that one which only hands it on need not run the user's code (PackedCause, load_packed). Nor
may it fail where it is shown: what the interpreter and `traceback` read off an exception comes from the
interpreter's own classes, whatever the cause's type makes of those names.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pickle
import types
import weakref
from collections.abc import Callable
from typing import Any

from ray_mono.common import code_pickler, raw_error
from ray_mono.common.ray_error import RayError, UnserializableException
from ray_mono.common.source_lines import add_source_lines

_FOR_THAT_PROCESS = (KeyboardInterrupt, SystemExit, asyncio.CancelledError)
"""Meant for the process or coroutine where they were raised: they must not pass for one's own elsewhere."""
_HEAP_TYPE_FLAG = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, not built into the interpreter
_BUILT_IN: dict[str, Any] = {**vars(object), **vars(BaseException)}
_PLAIN: dict[str, Any] = {
    **{
        name: _BUILT_IN[name]
        for name in (
            *("__class__", "__format__", "__getattribute__", "__setattr__", "__delattr__", "__dict__"),
            *("with_traceback", "add_note"),
            *("__cause__", "__context__", "__suppress_context__", "__traceback__"),
        )
    },
    "__notes__": (),
    "__bool__": lambda self: True,
    "__len__": lambda self: 1,
    "__del__": lambda self: None,  # no constructor of the type ran
}
"""What a combined error has of its own where its cause's type has it: whoever raises, holds or shows an
error asks it for these."""
_MAY_LOAD_OTHERWISE = {
    "__init__",
    "__new__",
    "__reduce__",
    "__reduce_ex__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
}
_combined_types: weakref.WeakValueDictionary[type, type[RayTaskError]] = weakref.WeakValueDictionary()


class PackedCause(Exception):
    """Stands for a cause where errors are only handed on.

    Args:
        packed: what _pack_cause made of it.
        text: of the cause.
    """

    def __init__(self, packed: bytes, text: str) -> None:
        super().__init__(packed, text)
        self.packed = packed
        self.text = text


class RayTaskError(RayError):
    """A remote function or actor method raised. `str()` shows where, with the traceback of there.

    Args:
        function_name: as the user knows it: "f", "Actor.method".
        traceback_str: the remote traceback, ready to print.
        cause: what was raised. If that is itself a RayTaskError (the function asked for a failed result), its
            own cause is meant.
        proctitle: the title of the process at that time; "ray_mono::<function_name>()" if None.
        pid: of the process; this one's if None.
        ip: address of the node, or None.
        actor_repr, actor_id: for actor methods; the id in hex.
    """

    # With values, so that a property of this name in the cause's type is not found first.
    function_name: str = ""
    traceback_str: str = ""
    cause: BaseException = RayError()
    proctitle: str = ""
    pid: int = 0
    ip: str | None = None
    actor_repr: str | None = None
    actor_id: str | None = None

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
        actor_id: str | None = None,
    ) -> None:
        while raw_error.is_a(cause, RayTaskError):
            cause = raw_error.attributes_of(cause)["cause"]
        self._fill(
            function_name=function_name,
            traceback_str=traceback_str,
            cause=cause,
            proctitle=proctitle or f"ray_mono::{function_name}()",
            pid=os.getpid() if pid is None else pid,
            ip=ip,
            actor_repr=actor_repr,
            actor_id=actor_id,
        )
        super().__init__(function_name, traceback_str, cause, self.proctitle, self.pid, ip)

    def _fill(self, **fields: Any) -> None:
        # Not by assignment: the cause's type, which a combined error also is, may forbid that (a frozen
        # dataclass).
        raw_error.attributes_of(self).update(fields)

    def as_instanceof_cause(self) -> RayTaskError:
        """This error as one that `except` clauses for the cause's type catch too.

        Returns self where that cannot be: the cause is itself an error of ray_mono's about tasks, its type
        cannot be subclassed, or it is one of those that end whoever waits (`_FOR_THAT_PROCESS`).
        """
        cause_type = type(self.cause)
        if issubclass(cause_type, _FOR_THAT_PROCESS) or issubclass(RayTaskError, cause_type):
            return self
        if issubclass(type(self), cause_type) or cause_type is UnserializableException:
            return self
        try:
            combined = _combined_types.get(cause_type)
            if combined is None:
                combined = _make_combined_type(cause_type)
            error = _new_without_user_code(combined, self.cause)
            error._fill(**_fields(self))
            raw_error.set_arguments(error, (self.cause,))
        except BaseException:  # the user's metaclass, __init_subclass__ or slots refuse: whatever they raise
            return self
        return error

    def __str__(self) -> str:
        place = [f"pid={self.pid}"]
        place += [f"ip={self.ip}"] if self.ip else []
        place += [f"actor_id={self.actor_id}"] if self.actor_id else []
        place += [f"repr={self.actor_repr}"] if self.actor_repr else []
        return f"{self.proctitle} ({', '.join(place)})\n{self.traceback_str.rstrip()}"

    def __repr__(self) -> str:
        try:
            return super().__repr__()
        except BaseException:  # the cause's
            return f"RayTaskError({self.function_name!r}, {raw_error.repr_of(self.cause)})"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Not __reduce__: a cause's type may define __reduce_ex__, which pickle prefers.
        fields = _fields(self)
        cause = fields.pop("cause")
        is_packed = raw_error.is_a(cause, PackedCause)
        packed = cause if is_packed else PackedCause(_pack_cause(cause), raw_error.text_of(cause))
        return _rebuild, (fields, packed.packed, packed.text, type(self) is not RayTaskError)


def _fields(error: RayTaskError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in RayTaskError.__annotations__}


def _make_combined_type(cause_type: type[BaseException]) -> type[RayTaskError]:
    name = f"RayTaskError({cause_type.__name__})"

    def look_up_on_cause(self: RayTaskError, attribute: str) -> Any:
        # Called for what the instance lacks, since no constructor of the cause's type ran.
        if attribute.startswith("__") and attribute.endswith("__"):
            # The interpreter asks: for notes, say.
            with contextlib.suppress(KeyError):
                return raw_error.attributes_of(self.cause)[attribute]
            raise AttributeError(f"{name} has no attribute {attribute!r}")
        return getattr(self.cause, attribute)

    def show(self: RayTaskError) -> str:
        return f"{name}({raw_error.repr_of(self.cause)})"

    body = {
        "__module__": "ray_mono.exceptions",
        "__qualname__": name,
        "__doc__": f"A remote {cause_type.__name__}: both that and a RayTaskError.",
        "__getattr__": look_up_on_cause,
        "__repr__": show,
        "__str__": RayTaskError.__str__,
        "__reduce_ex__": RayTaskError.__reduce_ex__,
        **{own: _PLAIN[own] for own in _python_methods(cause_type) & _PLAIN.keys()},
    }
    combined = types.new_class(name, (RayTaskError, cause_type), {}, lambda namespace: namespace.update(body))
    _combined_types[cause_type] = combined
    return combined


def _new_without_user_code(combined: type[RayTaskError], cause: BaseException) -> RayTaskError:
    """An instance made by the nearest built-in type, so that OSError.errno and the like are there."""
    built_in: Any = combined
    while built_in.__flags__ & _HEAP_TYPE_FLAG:
        built_in = built_in.__base__
    arguments, *state = built_in.__reduce__(cause)[1:]
    error: RayTaskError = built_in.__new__(combined, *arguments)
    built_in.__init__(error, *arguments)
    for attributes in state:  # ImportError keeps its name and path so
        for name, value in (attributes or {}).items():
            descriptor = getattr(built_in, name, None)
            if isinstance(descriptor, types.MemberDescriptorType):
                descriptor.__set__(error, value)
    return error


def _pack_cause(cause: BaseException) -> bytes:
    """The cause as bytes that load, or b"" if there is no way."""
    for reduced in (_as_it_is, _as_parts):
        try:
            packed = code_pickler.dumps(reduced(cause))
            if _python_methods(type(cause)) & _MAY_LOAD_OTHERWISE:
                function, arguments = pickle.loads(packed)
                # A constructor that wants other arguments than it handed on fails only here.
                function(*arguments)
            return packed
        except BaseException:  # whatever the user's pickling raises
            continue
    return b""


def _as_it_is(cause: BaseException) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return _identity, (cause,)


def _as_parts(cause: BaseException) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    attributes = {
        name: value for name, value in raw_error.attributes_of(cause).items() if _can_be_pickled(value)
    }
    arguments = tuple(
        value if _can_be_pickled(value) else repr(value) for value in raw_error.arguments_of(cause)
    )
    return _from_parts, (type(cause), arguments, attributes)


def _identity(cause: BaseException) -> BaseException:
    return cause


def _from_parts(
    cause_type: type[BaseException], arguments: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    built_in: Any = cause_type
    while built_in.__flags__ & _HEAP_TYPE_FLAG:
        built_in = built_in.__base__
    cause: BaseException = built_in.__new__(cause_type, *arguments)
    raw_error.set_arguments(cause, arguments)
    raw_error.attributes_of(cause).update(attributes)
    return cause


def _rebuild(fields: dict[str, Any], packed_cause: bytes, text: str, is_combined: bool) -> RayTaskError:
    cause: BaseException = UnserializableException(text)
    if packed_cause:
        try:
            function, arguments = pickle.loads(packed_cause)
            found = function(*arguments)
            if raw_error.is_a(found, BaseException):
                cause = found
        except KeyboardInterrupt:  # the user's, of whom imports may take long
            raise
        except BaseException:  # whatever the user's unpickling raises, or a module that is not here
            pass
    fields["traceback_str"] = add_source_lines(fields["traceback_str"])
    error = RayTaskError(cause=cause, **fields)
    return error.as_instanceof_cause() if is_combined else error


class _OursOnly(pickle.Unpickler):
    """Loads errors of ours; whatever else they hold has to be packed."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (__name__, _rebuild.__name__):
            return _rebuild_packed
        if module.partition(".")[0] != __name__.partition(".")[0]:
            raise pickle.UnpicklingError(f"{module}.{name} is not ours")
        return super().find_class(module, name)


def _rebuild_packed(
    fields: dict[str, Any], packed_cause: bytes, text: str, is_combined: bool
) -> RayTaskError:
    return RayTaskError(cause=PackedCause(packed_cause, text), **fields)


def load_packed(data: bytes) -> RayError | None:
    """A pickled error, to be handed on: runs no code of the user's, whose causes stay packed. None where
    that cannot be."""
    try:
        error = _OursOnly(io.BytesIO(data)).load()
    except Exception:  # there is something in it that is not ours
        return None
    return error if isinstance(error, RayError) else None


def packed_cause_of(error: RayError) -> PackedCause:
    """Of an error that load_packed made: the exception of the user's at its root, or the error itself."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, PackedCause):
        return error.cause
    return PackedCause(code_pickler.dumps(_as_it_is(error)), raw_error.text_of(error))


def _python_methods(kind: type) -> set[str]:
    return {name for base in kind.__mro__ if base.__flags__ & _HEAP_TYPE_FLAG for name in vars(base)}


def _can_be_pickled(value: Any) -> bool:
    try:
        code_pickler.dumps(value)
    except BaseException:  # whatever the value's pickling raises
        return False
    return True
