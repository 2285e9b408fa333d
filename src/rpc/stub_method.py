"""The methods of generated stubs: made when they are first used, since a process calls few of the many that a
service has (a worker would otherwise make 70, for 0.25 MB of pages that it shares with nobody: measured).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class StubMethod:
    """A class attribute of a stub. The first use on an instance puts the channel's method in its own place
    there, so later uses cost what any attribute costs.
    """

    __slots__ = ("_from_string", "_is_streaming", "_name", "_path", "_to_string")

    def __init__(
        self,
        path: str,
        to_string: Callable[[Any], bytes],
        from_string: Callable[[bytes], Any],
        is_streaming: bool,
    ) -> None:
        self._path = path
        self._to_string = to_string
        self._from_string = from_string
        self._is_streaming = is_streaming

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, stub: Any, owner: type) -> Any:
        channel = stub.channel
        made = (channel.unary_stream if self._is_streaming else channel.unary_unary)(
            self._path, request_serializer=self._to_string, response_deserializer=self._from_string
        )
        stub.__dict__[self._name] = made
        return made


def stub_method(path: str, request_type: Any, reply_type: Any, is_streaming: bool = False) -> Any:
    """A StubMethod; Any, as each stands in its class under the type of what it becomes."""
    return StubMethod(path, request_type.SerializeToString, reply_type.FromString, is_streaming)
