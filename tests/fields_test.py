"""Whose a field is: what tests can count of "nobody assigns another object's fields"."""

from __future__ import annotations

import ast
import re

from tests.sources import ROOT, part, python_files, tree

# "path:attribute": why a file sets a field that it does not define
SET_FROM_OUTSIDE: dict[str, str] = {
    "python/ray_mono/_private/compat/ray_command.py:params": "a click command's",
    "python/ray_mono/_private/node/reaper_client.py:returncode": (
        "a Popen's, whose process another has waited for"
    ),
    "python/ray_mono/compat.py:required": "an argparse action's",
    "src/gcs/gcs_server.py:secret": "an argparse namespace's",
    "python/ray_mono/_private/compat/ray_modules/__init__.py:worker": "Ray's own name for a module's part",
    "python/ray_mono/_private/compat/ray_modules/iter.py:actor": "a name that Ray's programs read",
    "python/ray_mono/_private/logs/progress_bars.py:state": "what a bar says, in its list of bars",
    "src/object_manager/pull_manager.py:state": "a pull is a row of the PullManager's table",
    "src/rpc/framed_channel.py:call_id": "a call is what the channel keeps of it until it is answered",
}


MESSAGES = {
    "arg",
    "info",
    "_info",
    "message",
    "record",
    "reply",
    "request",
    "row",
    "spec",
    "wanted",
    "warning",
}
"""What a variable is called that is a protobuf message, or a record of the logging module."""

SET_BY_NAME = {
    "python/ray_mono/_private/compat/module_alias.py": "a module's variables",
    "python/ray_mono/_private/compat/old_names.py": "names of Ray's on our classes",
    "python/ray_mono/_private/remote/method_decorator.py": "what @method leaves on a function",
    "src/gcs/job_manager.py": "fields of a row, which is a message",
}


def fields_of_messages() -> set[str]:
    """Of every message in protobuf/: whoever makes one fills it in."""
    text = "\n".join(path.read_text() for path in (ROOT / "protobuf").glob("*.proto"))
    return set(re.findall(r"(\w+) = \d+", text))


def own_fields(module: ast.Module) -> set[str]:
    """Attributes of the classes that a module defines, or imports from no part of ours."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            found.update(
                each.target.id
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            )
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            if isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return found


def test_fields_are_set_by_the_module_that_defines_them() -> None:
    messages, wrong = fields_of_messages(), []
    fields = {path: own_fields(tree(path)) for path in python_files() if part(path) is not None}
    ours = set().union(*fields.values())
    for path, own in fields.items():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            base = ast.unparse(node.value)
            if base in ("self", "cls", "sys") or f"{path}:{node.attr}" in SET_FROM_OUTSIDE:
                continue
            is_message = node.attr in messages and base.rpartition(".")[2] in MESSAGES
            if node.attr in ours - own and not is_message:
                wrong.append(f"{path}:{node.lineno}: {base}.{node.attr}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_a_life_is_moved_by_itself() -> None:
    """Whose `state` is an Enum with a table sets it by `self.state`; rows of a table that their module keeps
    are its own business."""
    wrong = []
    for path in python_files():
        if not path.startswith(("src/", "python/")):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == "state":
                base = ast.unparse(node.value)
                if base != "self" and base not in MESSAGES and f"{path}:state" not in SET_FROM_OUTSIDE:
                    wrong.append(f"{path}:{node.lineno}: {base}.state")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_field_is_set_by_its_name() -> None:
    """setattr() hides from the tests above what it sets."""
    wrong = []
    for path in python_files():
        if not path.startswith(("src/", "python/")) or path in SET_BY_NAME:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
                if ast.unparse(node.args[0]) != "self":
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n" + "\n".join(wrong)
