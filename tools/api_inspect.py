"""The public surface of a package as JSON, for tools/api_diff.py, which runs this file by its path in either
interpreter.

    python api_inspect.py PACKAGE [MODULE ...]

MODULEs are named inside PACKAGE ("" is the package itself). Imports nothing but the standard library and what
it is asked about. What is public: the names in `__all__`; else every function and class without a leading
underscore that the module itself defines, and the constants in capitals that it assigns. A class counts with
its public members, wherever in the package they come from. The functions of `internal_kv` count although they
begin with an underscore: that is what programs call.

In the package's own sources it also looks for what only seems to be there: a function whose first real
statement raises NotImplementedError (a "stub"), and parameters that a function never mentions ("unused").
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import json
import sys
import textwrap
import warnings
from types import ModuleType
from typing import Any, TypeVar

CONSTANTS = (str, bytes, int, float, bool, tuple, list, dict, set, frozenset, type(None))
# Members that everything of such a kind has, and that no API means.
INHERITED = (object, BaseException, Exception, enum.Enum, dict, list, tuple, str, int)


def main() -> None:
    warnings.simplefilter("ignore")
    package, *modules = sys.argv[1:]
    found = {name: describe_module(package, name) for name in modules}
    version = getattr(importlib.import_module(package), "__version__", "")
    json.dump({"package": package, "version": version, "modules": found}, sys.stdout)


def describe_module(package: str, name: str) -> dict[str, Any]:
    """{"names": {name: description}}, or {"error": why it cannot be imported}."""
    try:
        module = importlib.import_module(f"{package}.{name}" if name else package)
    except ImportError as error:
        return {"error": str(error)}
    names = {}
    for each in public_names(package, module):
        try:
            names[each] = describe(package, getattr(module, each))
        except Exception as error:  # whatever a lazy module raises for a name that it announces
            names[each] = {"kind": "broken", "error": f"{type(error).__name__}: {error}"}
    return {"names": names}


def public_names(package: str, module: ModuleType) -> list[str]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(name for name in listed if not name.startswith("_"))
    assigned = _assigned(module)
    found = []
    for name, value in vars(module).items():
        is_constant = name.isupper() and name in assigned and isinstance(value, CONSTANTS)
        is_defined_here = getattr(value, "__module__", None) == module.__name__ and callable(value)
        is_public = not name.startswith("_") or name.startswith("_internal_kv")
        if is_public and not isinstance(value, TypeVar) and (is_constant or is_defined_here):
            found.append(name)
    return sorted(found)


def _assigned(module: ModuleType) -> set[str]:
    """Names that the module's own source gives a value to."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return set()
    return {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def describe(package: str, value: Any) -> dict[str, Any]:
    if isinstance(value, ModuleType):
        return {"kind": "module"}
    if inspect.isclass(value):
        return {
            "kind": "class",
            **describe_callable(package, value),
            "bases": [base.__name__ for base in value.__mro__[1:] if not base.__name__.startswith("_")],
            "members": members(package, value),
        }
    if callable(value):
        return {"kind": "function", **describe_callable(package, value)}
    if isinstance(value, CONSTANTS):
        return {"kind": "constant"}
    return {"kind": "value"}


def members(package: str, cls: type) -> dict[str, Any]:
    """Methods, properties and class attributes without a leading underscore, from every base that is the
    package's."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base in INHERITED or base.__module__.split(".")[0] != package:
            continue
        inherited = {} if base is cls else {"inherited": base.__name__}
        for name, value in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if inspect.isroutine(value):
                found[name] = {"kind": "method", **inherited, **describe_callable(package, value)}
            elif isinstance(value, property) or inspect.isdatadescriptor(value):
                getter = getattr(value, "fget", None)
                found[name] = {
                    "kind": "attribute",
                    **inherited,
                    **(findings(package, getter) if getter else {}),
                }
            else:
                found[name] = {"kind": "attribute", **inherited}
        for name in _set_on_self(base):
            found.setdefault(name, {"kind": "attribute", **inherited})
    return found


def _set_on_self(cls: type) -> set[str]:
    """Public attributes that the methods of a class give to its instances.

    Method by method: the source of a class is looked for where its __module__ says, which need not be where
    it was written.
    """
    return {
        node.attr
        for method in vars(cls).values()
        for node in ast.walk(_source_of(method))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and not node.attr.startswith("_")
    }


def _source_of(value: Any) -> ast.AST:
    """Empty where there is none."""
    if isinstance(value, property):
        value = value.fset or value.fget
    try:
        return ast.parse(
            textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(value, "__func__", value))))
        )
    except (OSError, TypeError, ValueError, SyntaxError):
        return ast.Module([], [])


def describe_callable(package: str, value: Any) -> dict[str, Any]:
    described = findings(package, value.__init__ if inspect.isclass(value) else value)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # built in, or compiled without a signature
        return described
    described["parameters"] = [
        {
            "name": parameter.name,
            "kind": parameter.kind.name,
            "default": None
            if parameter.default is parameter.empty
            else default_text(package, parameter.default),
        }
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls") and not parameter.name.startswith("_")
    ]
    return described


def default_text(package: str, value: Any) -> str:
    """As source, without what differs between two packages or two runs."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if inspect.isclass(value) or inspect.isroutine(value):
        return str(value.__qualname__)
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text else text.replace(f"{package}.", "")


# ---- what only seems to be there


def findings(package: str, function: Any) -> dict[str, Any]:
    function = inspect.unwrap(function) if callable(function) else function
    if getattr(function, "__module__", "").split(".")[0] != package:
        return {}
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, ValueError, SyntaxError):  # no source: compiled, generated, or a lambda
        return {}
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {}
    found: dict[str, Any] = {}
    body = [each for each in node.body if not _is_docstring(each)]
    if body and _raises_not_implemented(body[0]):
        found["stub"] = True
    elif unused := sorted(_parameters(node) - _mentioned(body)):
        found["unused"] = unused
    return found


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _raises_not_implemented(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Raise)
        and node.exc is not None
        and "NotImplementedError" in ast.unparse(node.exc)
    )


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    arguments = node.args
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    return {each.arg for each in every if each is not None and not each.arg.startswith("_")} - {"self", "cls"}


def _mentioned(body: list[ast.stmt]) -> set[str]:
    return {each.id for statement in body for each in ast.walk(statement) if isinstance(each, ast.Name)}


if __name__ == "__main__":
    main()
