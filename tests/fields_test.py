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

BUNDLES = {
    "_config",
    "_core",  # the CoreInterface
    "_env",
    "env",
    "_environment",
    "_parts",
    "_stub",
    "stub",
}
"""What a field is called that holds parts for those who use them and does nothing itself, or is a service's
stub, whose methods are objects."""

VALUES = {"actor_id", "cluster_id", "job_id", "node_id", "worker_id"}
"""Fields that are ids, whose methods are everybody's."""

DOORS = {"src/core_worker/process/servicer.py"}
"""A process's servicer is handed the whole."""

# "path:self._part.other": why its methods may be called
REACHED = {
    "python/ray_mono/actor.py:self._code.signature": "what is known of a class is a value",
    "python/ray_mono/actor.py:self._metadata.signature": "what is known of a method is a value",
    "python/ray_mono/actor.py:self._handle._ray_metadata": "what a handle knows of its class is a value",
    "src/core_worker/task_execution/execution.py:self.executor.actor": "the actor is what the worker runs",
    "src/core_worker/task_execution/executor.py:self._functions.loaded": "a dict, looked at by every call",
    "src/core_worker/task_execution/executor.py:self._actor.methods": "a dict, looked at by every call",
    "src/core_worker/task_execution/item_sender.py:self.value.nested": "a list of a value's",
    "src/core_worker/task_execution/item_sender.py:self._part.items": "a field of a message",
    "src/core_worker/task_execution/item_sender.py:self._call.answer_to": "a call is a value",
    "src/core_worker/task_execution/task_reply.py:self._running.actor": "the actor is what the worker runs",
    "src/raylet/scheduling/lease_manager.py:self._ledger.available": "a set of resources is a value",
    "src/raylet/scheduling/leases.py:self.shape.required": "a set of resources is a value",
    "src/raylet/scheduling/leases.py:self.shape.resources": "a set of resources is a value",
    "src/raylet/store_client.py:self._store.CollectGarbage": "a method of a stub",
    "src/raylet/store_client.py:self._store.FreeOwnedBy": "a method of a stub",
    "src/rpc/framed_channel.py:self._channel._loop": "a call is its channel's, in the same module",
    "src/rpc/framed_channel.py:self.channel._loop": "a call is its channel's, in the same module",
    "src/rpc/grpc_splice.py:self.inner.transport": "a protocol's transport is asyncio's",
    "src/rpc/reactor_server.py:self._server.reactor": "a connection is its server's, in the same module",
    "src/rpc/reactor_server.py:self._server.handlers": "a connection is its server's, in the same module",
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


def test_nobody_reaches_through_one_part_to_another() -> None:
    """`self._part.other.does()`: whoever needs the other part gets it by its constructor."""
    wrong: list[str] = []
    reached: set[str] = set()
    for path in python_files():
        if part(path) is None or path in DOORS:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                other = node.func.value
                if isinstance(other, ast.Attribute) and isinstance(other.value, ast.Attribute):
                    through = other.value
                    is_own = isinstance(through.value, ast.Name) and through.value.id == "self"
                    if is_own and through.attr not in BUNDLES and other.attr not in VALUES:
                        reached.add(f"{path}:{ast.unparse(other)}")
                        if f"{path}:{ast.unparse(other)}" not in REACHED:
                            wrong.append(f"{path}:{node.lineno}: {ast.unparse(node.func)}()")
    wrong += [f"{name}: need not be in REACHED any more" for name in REACHED if name not in reached]
    assert not wrong, "\n" + "\n".join(wrong)
