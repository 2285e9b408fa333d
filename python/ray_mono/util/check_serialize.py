"""Which part of a value keeps it from being pickled: `inspect_serializability`.

Pickling fails somewhere deep, with the type of the culprit at best. Here the value is taken apart: a function
into the globals and the variables of enclosing functions that it uses, anything else into its attributes,
keys and elements; each part is pickled by itself, and the first that fails is taken apart in turn.
"""

from __future__ import annotations

from typing import Any, TextIO

from ray_mono.core_worker.values.unpicklable import parts, why_not


class FailureTuple:
    """A culprit.

    Attributes:
        obj: what cannot be pickled.
        path: the names that lead to it from the value that was asked about.
        parent: what holds it; None for that value itself.
    """

    def __init__(self, obj: Any, path: tuple[str, ...], parent: Any) -> None:
        self.obj = obj
        self.path = path
        self.parent = parent

    def __repr__(self) -> str:
        name = self.path[-1] if self.path else "unknown"
        return f"FailTuple({name} [path={' -> '.join(self.path)}, obj={self.obj}, parent={self.parent}])"


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Whether `base_obj` can be pickled, and if not, what in it cannot. Prints what it finds.

    Args:
        name: the name of the value in what is printed.
        depth: how many times something is taken apart.
        print_file: where it prints; None is the standard output.

    Returns (whether it can be pickled, the innermost parts that cannot, as FailureTuples).
    """
    print(f"Checking serializability of {base_obj!r}", file=print_file)
    failures: set[FailureTuple] = set()
    path = (name,) if name is not None else ()
    if not _search(base_obj, path, [], depth, failures, print_file):
        return True, set()
    found = "\n".join(f"  {failure}" for failure in failures)
    print(
        f"Cannot be pickled:\n{found}\nMake it inside of the function or method that uses it, or register a"
        " serializer for its type.",
        file=print_file,
    )
    return False, failures


def _search(
    value: Any,
    path: tuple[str, ...],
    above: list[Any],
    depth: int,
    failures: set[FailureTuple],
    file: TextIO | None,
) -> bool:
    """Adds the deepest culprit below `value`; returns whether there is one."""
    indent = "    " * len(path)
    error = why_not(value, above)
    if error is None:
        return False
    print(f"{indent}{path[-1] if path else 'it'} fails: {error}", file=file)
    if depth > 0:
        for _, name, part in parts(value):
            if _search(part, (*path, name), [*above, value], depth - 1, failures, file):
                return True
    failures.add(FailureTuple(value, path, above[-1] if above else None))
    return True
