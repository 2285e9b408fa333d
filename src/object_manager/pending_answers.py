"""Requests that wait for an answer, by the number that a machine gave them."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PendingAnswers(Generic[T]):
    """One machine's. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[T]] = {}

    def expect(self, number: int) -> asyncio.Future[T]:
        """The answer to come. Whoever awaits it may be cancelled: then nobody is answered any more."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        answer.add_done_callback(lambda _: self._waiting.pop(number, None))
        return answer

    def give(self, number: int, value: T) -> None:
        """Nothing where the caller is gone: its connection's end gives back what it was granted."""
        answer = self._waiting.get(number)
        if answer is not None and not answer.done():
            answer.set_result(value)

    def refuse(self, number: int, error: Exception) -> None:
        answer = self._waiting.get(number)
        if answer is not None and not answer.done():
            answer.set_exception(error)


def was_given(answer: asyncio.Future[Any]) -> bool:
    """Whether it came in the turn in which its caller was cancelled: what it grants must be given back."""
    return answer.done() and not answer.cancelled() and answer.exception() is None
