"""A small terminal that keeps its screen, for tests of what draws on one."""

from __future__ import annotations

import io
import re


class Terminal(io.StringIO):
    """Understands what the bars use: line breaks, returns, erasing a line, one line up."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [""]
        self.row = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[2K|\x1b\[1A|\x1b\[\d*m|\r|\n|[^\x1b\r\n]+", text):
            if part == "\x1b[2K":
                self.lines[self.row] = ""
            elif part == "\x1b[1A":
                self.row -= 1
            elif part == "\n":
                self.row += 1
                self.lines[self.row :] = self.lines[self.row :] or [""]
            elif part != "\r" and not part.endswith("m"):
                self.lines[self.row] += part
        return len(text)

    def screen(self) -> list[str]:
        return [line for line in self.lines if line]
