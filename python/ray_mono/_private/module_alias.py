"""Imports of one package that give the modules of another: what makes `import ray` mean `ray_mono`.

A finder at the front of sys.meta_path answers for the other name. The module that it hands out is the very module of the package, not a
second copy, so that `isinstance`, pickles and monkeypatches agree whichever name a program used. The import system stamps a module that
it was handed with the spec it was found by; the module's own is put back, since everything that the module imports relative to itself
depends on it.

Finder and loader do not inherit from importlib.abc, which would load thirty modules into every worker.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class AliasFinder:
    """`alias` and everything below it is `package` and what lies below that."""

    def __init__(
        self, alias: str, package: str, moved: Mapping[str, str], on_moved: Callable[[str], None]
    ) -> None:
        """moved: modules of the alias alone, each with its place in the package; both named below these. on_moved hears of each that
        is imported."""
        self.alias = alias
        self._package = package
        self._moved = moved
        self._on_moved = on_moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None where the package has no such module either: then the import fails as it should."""
        top, _, rest = fullname.partition(".")
        if top != self.alias:
            return None
        place = self._moved.get(rest, rest)
        name = f"{self._package}.{place}" if place else self._package
        if name not in sys.modules:
            try:
                if find_spec(name) is None:
                    return None
            except ModuleNotFoundError:  # no such parent
                return None
        if rest in self._moved:
            self._on_moved(rest)
        loader: Any = _AliasLoader(name)
        return ModuleSpec(fullname, loader, is_package=hasattr(sys.modules.get(name), "__path__"))


class _AliasLoader:
    """Hands out a module of another name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._own_spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


def installed(alias: str) -> AliasFinder | None:
    """The finder that answers for `alias`."""
    for finder in sys.meta_path:
        if isinstance(finder, AliasFinder) and finder.alias == alias:
            return finder
    return None
