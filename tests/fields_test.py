"""Whose a field is: what tests can count of "nobody assigns another object's fields"."""

from __future__ import annotations

import ast
import re

from tests.sources import ROOT, our_files, python_files, tree

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
    "src/gcs/actor/actor_rows.py:state": "a field of a row, which is a message",
    "src/gcs/node_manager.py:state": "a field of a row, which is a message",
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

# "path:name": what a variable of MESSAGES holds instead, that has another name as well
OTHERWISE_NAMED = {"src/core_worker/objects/getter.py:wanted": "a list of ids"}

SET_BY_NAME = {
    "python/ray_mono/_private/compat/module_alias.py": "a module's variables",
    "python/ray_mono/_private/compat/old_names.py": "names of Ray's on our classes",
    "python/ray_mono/_private/compat/ray_modules/__init__.py": "a module's variables",
    "python/ray_mono/_private/remote/mapping.py": "what an error of the user's is told of our doing",
    "python/ray_mono/_private/remote/method_decorator.py": "what @method leaves on a function",
    "python/ray_mono/dag/dag_node.py": "of a copy that is being made",
    "src/core_worker/values/library_reducers.py": "of a copy that is being made",
    "src/gcs/job_manager.py": "fields of a row, which is a message",
    "src/rpc/stub_method.py": "a stub's methods, made when they are first used",
}

# "path:base": whose private field a module sets from outside of the object's own methods
PRIVATE_SET = {
    "python/ray_mono/_private/compat/ray_modules/iter_local.py:original": "an iterator of the same class",
    "python/ray_mono/dag/dag_node.py:copied": "a copy that is being made",
    "src/core_worker/object_ref.py:ref": "an object that is being made",
    "src/core_worker/values/library_reducers.py:copied": "a copy that is being made",
    "src/rpc/reactor_channel.py:channel": "a call is its channel's, in the same module",
}

BUNDLES = {
    "_config",
    "_core",  # the CoreInterface
    "_env",
    "env",
    "_environment",
    "_execution",
    "_parts",
    "_stub",
    "stub",
}
"""What a field is called that holds parts for those who use them and does nothing itself, or is a service's
stub, whose methods are objects."""

VALUES = {
    "actor_id",
    "cluster_id",
    "config",
    "job",
    "job_id",
    "node_id",
    "spec",
    "stub",
    "worker_id",
}
"""Fields that are ids and other values, which are everybody's to read."""

DOORS = {"src/core_worker/process/servicer.py"}
"""A process's servicer is handed the whole."""

# "path:self._part.other": why its methods may be called, and its fields be read
REACHED = {
    "python/ray_mono/actor.py:self._code.signature": "what is known of a class is a value",
    "python/ray_mono/actor.py:self._metadata.signature": "what is known of a method is a value",
    "python/ray_mono/actor.py:self._handle._ray_metadata": "what a handle knows of its class is a value",
    "python/ray_mono/dag/class_node.py:self._actor_class.__ray_actor_class__": "the user's class",
    "python/ray_mono/dag/function_node.py:self._function._function": "the user's function",
    "src/core_worker/task_execution/execution.py:self.executor.actor": "the actor is what the worker runs",
    "src/core_worker/task_execution/executor.py:self._functions.loaded": "a dict, looked at by every call",
    "src/core_worker/task_execution/executor.py:self._actor.methods": "a dict, looked at by every call",
    "src/core_worker/task_execution/item_sender.py:self.value.nested": "a list of a value's",
    "src/core_worker/task_execution/item_sender.py:self._call.answer_to": "a call is a value",
    "src/core_worker/task_execution/shared_calls.py:self._call.connection": "a call is a value",
    "src/core_worker/task_execution/task_reply.py:self._running.actor": "the actor is what the worker runs",
    "src/raylet/cluster_events.py:self._ledger.total": "a set of resources is a value",
    "src/raylet/scheduling/leases.py:self.shape.required": "a set of resources is a value",
    "src/raylet/scheduling/leases.py:self.shape.resources": "a set of resources is a value",
    "src/raylet/store_client.py:self._store.CollectGarbage": "a method of a stub",
    "src/raylet/store_client.py:self._store.FollowHead": "a method of a stub",
    "src/raylet/store_client.py:self._store.FreeOwnedBy": "a method of a stub",
    "src/raylet/store_client.py:self._store.Release": "a method of a stub",
    "src/rpc/framed_channel.py:self._channel._loop": "a call is its channel's, in the same module",
    "src/rpc/framed_channel.py:self.channel._loop": "a call is its channel's, in the same module",
    "src/rpc/grpc_splice.py:self.inner.transport": "a protocol's transport is asyncio's",
    "src/rpc/reactor_server.py:self._server.reactor": "a connection is its server's, in the same module",
    "src/rpc/reactor_server.py:self._server.handlers": "a connection is its server's, in the same module",
}


TESTS_THAT_ASK = ("tests/core_worker/", "tests/gcs/", "tests/raylet/")
"""Which say to a part what others say to it, and look at what it says."""

PRIVATE_USED = {
    "_at_fork_reinit": "of a lock, after a fork",
    "_backward_hooks": "torch's own name",
    "_clear_type_cache": "of sys",
    "_current_frames": "of sys",
    "_exit": "of os",
    "_fail_on_unavailable": "Ray's own name",
    "_generator_ref": "Ray's own name",
    "_getframe": "of sys",
    "_home": "an ObjectRef's, on the way of each call",
    "_id": "an ObjectRef's, on the way of each call",
    "_in_order": "a graph's, for its drawing",
    "_is_owned": "of a lock",
    "_loop": "a channel's, for those that are made with it",
    "_spill_on_unavailable": "Ray's own name",
    "_ray_connected_core": "an actor handle's: all other names are its methods'",
    "_ray_core": "an actor handle's: all other names are its methods'",
    "_ray_metadata": "an actor handle's: all other names are its methods'",
    "_ray_state": "an actor handle's: all other names are its methods'",
    "_replace": "a named tuple's",
    "_run_exitfuncs": "of atexit",
    "_run_module_as_main": "of runpy",
    "_state": "of starlette's State",
    "_title": "a graph's, for its drawing",
    "_upstream": "a graph's, for its drawing",
}
"""Private names of others' objects that ours use, and why."""

PRIVATE_READ = {
    "_count": "of _thread: how many threads there are",
    "_exit": "of os",
    "_is_owned": "of a lock: whether it is held is what is tested",
    "_next_async": "Ray's own name",
    "_next_sync": "Ray's own name",
    "_IncludedRouter": "FastAPI's own name",
}

# "path:name": what a test replaces by its name, and why
PRIVATE_PATCHED = {
    "tests/core_worker/object_ref_test.py:_find_home": "as in a process that never connects",
    "tests/core_worker/process/process_end_test.py:_run_exitfuncs": "of atexit",
    "tests/core_worker/process/process_end_test.py:_threading_atexits": "of threading",
    "tests/core_worker/process/termination_test.py:_thread": "a module of Python's own",
    "tests/core_worker/values/library_reducers_test.py:_done": "as in a process without these libraries",
    "tests/core_worker/values/library_reducers_test.py:_num_modules": "as before anything was looked for",
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
    fields = {path: own_fields(tree(path)) for path in our_files()}
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


def made_here(module: ast.Module) -> set[ast.Attribute]:
    """Fields of an object that the function makes by __new__, of a class of this module, without __init__."""
    classes = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    found = set()
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef):
            continue
        nodes = list(ast.walk(function))
        made = {
            ast.unparse(node.targets[0])
            for node in nodes
            if isinstance(node, ast.Assign)
            and ast.unparse(node.value) in {f"{name}.__new__({name})" for name in classes}
        }
        found.update(
            node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) in made
        )
    return found


def test_a_life_is_moved_by_itself() -> None:
    """Whose `state` is an Enum with a table sets it by `self.state`; rows of a table that their module keeps
    are its own business."""
    wrong = []
    for path in python_files():
        if not path.startswith(("src/", "python/")):
            continue
        begun = made_here(tree(path))
        for node in ast.walk(tree(path)):
            if node in begun or not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            if node.attr == "state":
                base = ast.unparse(node.value)
                if base != "self" and f"{path}:state" not in SET_FROM_OUTSIDE:
                    wrong.append(f"{path}:{node.lineno}: {base}.state")
    assert not wrong, "\n" + "\n".join(wrong)


def owner_of_variables(node: ast.expr) -> str | None:
    """Whose `x.__dict__` or `vars(x)` this is."""
    if isinstance(node, ast.Attribute) and node.attr == "__dict__":
        return ast.unparse(node.value)
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).removeprefix("builtins.") == "vars"
        and node.args
    ):
        return ast.unparse(node.args[0])
    return None


def set_by_name(node: ast.AST) -> str | None:
    """Whose field a piece of code sets or deletes without saying `x.field =`; None where it does not."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("update", "pop", "popitem", "setdefault", "clear", "__setitem__"):
            return owner_of_variables(node.func.value)
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func).removeprefix("builtins.")
        if function in ("super().__setattr__", "super().__delattr__"):
            return "self"
        if function in ("setattr", "delattr") or function.endswith(("__setattr__", "__delattr__")):
            return ast.unparse(node.args[0])
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return owner_of_variables(node.value)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Del):
        return ast.unparse(node.value)
    return None


def test_no_field_is_set_by_its_name() -> None:
    """setattr() and its like hide from the tests above what they set."""
    wrong = []
    for path in our_files():
        if path in SET_BY_NAME:
            continue
        for node in ast.walk(tree(path)):
            if set_by_name(node) not in (None, "self"):
                wrong.append(f"{path}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_what_is_frozen_is_set_where_it_is_made() -> None:
    wrong = []
    for path in our_files():
        made = {
            id(node)
            for function in ast.walk(tree(path))
            if isinstance(function, ast.FunctionDef) and function.name == "__post_init__"
            for node in ast.walk(function)
        }
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr == "__setattr__" and id(node) not in made:
                if ast.unparse(node.value) != "super()":
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_private_field_is_set_from_outside() -> None:
    wrong = []
    for path in our_files():
        begun = made_here(tree(path))
        for node in ast.walk(tree(path)):
            if node not in begun and isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                is_private = node.attr.startswith("_") and not node.attr.startswith("__")
                base = ast.unparse(node.value)
                if is_private and base not in ("self", "cls") and f"{path}:{base}" not in PRIVATE_SET:
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_self_is_whose_method_it_is() -> None:
    """A free function that calls its parameter `self` sets no field of it."""
    wrong = []
    for path in our_files():
        methods: set[int] = set()
        for each in ast.walk(tree(path)):
            if isinstance(each, ast.ClassDef):
                blocks = [each, *(node for node in each.body if isinstance(node, ast.If | ast.Try))]
                methods.update(id(node) for block in blocks for node in block.body)
        for function in ast.walk(tree(path)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or id(function) in methods:
                continue
            given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            if not {"self", "cls"} & {each.arg for each in given}:
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                    if ast.unparse(node.value) in ("self", "cls"):
                        wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)} in {function.name}()")
    assert not wrong, "\n" + "\n".join(wrong)


def bound(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """What is assigned to what."""
    if isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        return [(node.target, node.value)]
    if not isinstance(node, ast.Assign):
        return []
    pairs: list[tuple[ast.expr, ast.expr]] = []
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs += zip(target.elts, node.value.elts, strict=False)
        else:
            pairs.append((target, node.value))
    return pairs


def test_what_is_called_like_a_message_is_no_second_name_of_something_else() -> None:
    """`request = lease` would hide from the test above that `request.state = …` sets the lease's."""
    wrong = []
    for path in our_files():
        for node in ast.walk(tree(path)):
            for target, value in bound(node):
                if isinstance(target, ast.Name) and target.id in MESSAGES and isinstance(value, ast.Name):
                    if f"{path}:{target.id}" not in OTHERWISE_NAMED:
                        wrong.append(f"{path}:{target.lineno}: {target.id} = {value.id}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_nobody_reaches_through_one_part_to_another() -> None:
    """`self._part.other.does()`: whoever needs the other part gets it by its constructor."""
    wrong: list[str] = []
    reached: set[str] = set()
    for path in our_files():
        if path in DOORS:
            continue
        for node in ast.walk(tree(path)):
            other = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(other, ast.Attribute) and isinstance(other.value, ast.Attribute):
                through = other.value
                is_own = isinstance(through.value, ast.Name) and through.value.id == "self"
                if is_own and through.attr not in BUNDLES and other.attr not in VALUES:
                    reached.add(f"{path}:{ast.unparse(other)}")
                    if f"{path}:{ast.unparse(other)}" not in REACHED:
                        wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    wrong += [f"{name}: need not be in REACHED any more" for name in REACHED if name not in reached]
    assert not wrong, "\n" + "\n".join(wrong)


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def names_of(module: ast.Module) -> set[str]:
    """What it defines itself, in whatever class."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # of __slots__, say
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
            names.add(node.attr)
    return names


def test_nobody_uses_the_private_names_of_another_modules_objects() -> None:
    wrong = []
    used = set()
    for path in our_files():
        own = names_of(tree(path))
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                used.add(node.attr)
                if node.attr not in PRIVATE_USED:
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    wrong += [f"{name}: need not be in PRIVATE_USED any more" for name in PRIVATE_USED if name not in used]
    assert not wrong, "\n" + "\n".join(wrong)


def test_tests_do_not_reach_into_private_attributes() -> None:
    wrong = []
    for path in python_files():
        if not path.startswith(TESTS_THAT_ASK):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in PRIVATE_READ:
                if ast.unparse(node.value) not in ("self", "cls"):
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray_mono"):
                wrong += [
                    f"{path}:{node.lineno}: imports {each.name}"
                    for each in node.names
                    if is_private(each.name)
                ]
            if isinstance(node, ast.Attribute) and node.attr == "__dict__":
                wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("getattr", "setattr")):
                for name in node.args[1:2]:
                    if isinstance(name, ast.Constant) and is_private(name.value):
                        is_known = name.value in PRIVATE_READ or f"{path}:{name.value}" in PRIVATE_PATCHED
                        if not is_known:
                            wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n" + "\n".join(wrong)
