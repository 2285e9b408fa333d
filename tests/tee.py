"""A stand-in of a program's own for a standard stream, without flush() and isatty()."""

from __future__ import annotations


class Tee:
    """What programs put into sys.stdout: print() needs no more."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)
