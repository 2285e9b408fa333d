"""What importlib.metadata tells of a package that module_alias.py stands in for: its name and its version."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path


class AliasDistribution(importlib.metadata.Distribution):
    """Says that the package is installed. It names no files, and requires nothing."""

    def __init__(self, name: str, version: str) -> None:
        self._texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            "top_level.txt": f"{name}\n",
        }

    def read_text(self, filename: str) -> str | None:
        return self._texts.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        """Beside our own package."""
        return Path(__file__).parents[3] / path
