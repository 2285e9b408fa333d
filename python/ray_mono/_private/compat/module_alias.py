"""Makes imports of one package give the modules of another: so `import ray` means `ray_mono`.

A finder at the front of sys.meta_path answers for the other name. It hands out the very modules of the
package, and no copies. So `isinstance`, pickles and monkeypatches agree whichever name a program used. Only
the package itself is a view, with some names of its own. The import system puts into a module the spec by
which it was found. The loader puts the module's own spec back, since its relative imports depend on it.

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
        self,
        alias: str,
        package: str,
        moved: Mapping[str, str],
        on_moved: Callable[[str], None],
        own: Mapping[str, object],
        hidden: Mapping[str, str],
    ) -> None:
        """
        Args:
            moved, hidden: modules of the alias alone: their name below it -> their place in the package.
            on_moved: hears of each import of one of `moved`.
            own: names of the alias itself that differ from the package's, `__version__` among them.
        """
        self.alias = alias
        self._package = package
        self._moved = moved
        self._hidden = hidden
        self._own = own
        self._on_moved = on_moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None if the package has no such module: then the import fails, as it should."""
        top, _, rest = fullname.partition(".")
        if top != self.alias:
            return None
        place = self._hidden.get(rest) or self._moved.get(rest, rest)
        name = f"{self._package}.{place}" if place else self._package
        try:
            found = find_spec(name)
        # It has no such parent; or it is a module without a spec, which programs make themselves.
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None and name not in sys.modules:
            return None
        if rest in self._moved:
            self._on_moved(rest)
        loader: Any = _AliasLoader(name, None if rest else self._own)
        is_package = hasattr(sys.modules.get(name), "__path__")
        # `python -m` gives the program its origin as its name.
        return ModuleSpec(
            fullname, loader, origin=None if found is None else found.origin, is_package=is_package
        )

    def find_distributions(self, context: Any) -> Sequence[Any]:
        """importlib.metadata asks for all installed packages, or for the one named context.name."""
        if context.name is not None and context.name.lower() != self.alias:
            return []
        # Not before it is asked: importlib.metadata loads dozens of modules.
        from ray_mono._private.compat.alias_distribution import AliasDistribution

        return [AliasDistribution(self.alias, str(self._own["__version__"]))]


class _AliasLoader:
    """Hands out a module of another name."""

    def __init__(self, name: str, own: Mapping[str, object] | None) -> None:
        """own: the names that the view has of its own; None for a module that is handed out as it is."""
        self._name = name
        self._own = own
        self._own_spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        if self._own is not None:
            return _View(spec.name, module, self._own)
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if self._own is None:
            module.__spec__ = self._own_spec

    def get_code(self, fullname: str) -> Any:
        """For `python -m`."""
        spec: Any = find_spec(self._name)
        return spec.loader.get_code(self._name)


class _View(ModuleType):
    """A module under another name.

    To read, set or delete a name of it does so in that module. This leaves out the names that the view was
    given, and those that Python keeps about a module.
    """

    def __init__(self, name: str, module: ModuleType, own: Mapping[str, object]) -> None:
        super().__init__(name, module.__doc__)

        def get_attribute(attribute: str) -> Any:
            try:
                return getattr(module, attribute)
            except (AttributeError, ImportError):
                # The package does not know a module that somebody put below the alias by hand.
                if (brought := sys.modules.get(f"{name}.{attribute}")) is not None:
                    return brought
                raise

        # In the module, not in its class: importlib's LazyLoader makes it a plain module.
        vars(self).update(own, _module=module, __file__=module.__file__, __getattr__=get_attribute)

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self) or name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self._module, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._module, name)

    def __dir__(self) -> list[str]:
        return dir(self._module)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as cloudpickle has it of other modules."""
        return importlib.import_module, (self.__name__,)


def installed(alias: str) -> AliasFinder | None:
    """The finder that answers for `alias`."""
    for finder in sys.meta_path:
        if isinstance(finder, AliasFinder) and finder.alias == alias:
            return finder
    return None
