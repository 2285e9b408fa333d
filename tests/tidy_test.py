"""The house rules that can be counted: sizes, the direction of imports, and what no file may hold.

A rule is broken only by a line in one of the tables below, with its reason.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from tests.sources import ROOT, code_lines, our_files, part, python_files, tree

# Lines with code on them: not blank ones, comments or docstrings.
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# Of the core worker, for each 1,000 lines of it.
UNIT_TESTS_MIN = 25

# "path": "why it is longer"
LONG_FILES: dict[str, str] = {}
# "path::function": "why it is longer"
LONG_FUNCTIONS: dict[str, str] = {
    "python/ray_mono/_private/driver/init_arguments.py::make": "one parameter of init() a line",
}

# Which parts of ray_mono each part may import; "api" is python/ray_mono itself. Services meet in protobuf
# and nowhere else.
LAYERS = {
    "common": {"common", "protobuf"},
    "rpc": {"rpc", "common", "protobuf"},
    "gcs": {"gcs", "rpc", "common", "protobuf"},
    "raylet": {"raylet", "rpc", "common", "protobuf"},
    "object_manager": {"object_manager", "rpc", "common", "protobuf"},
    "core_worker": {"core_worker", "rpc", "common", "protobuf"},
    "api": {"api", "core_worker", "rpc", "common", "protobuf"},
}

# Packages that show names of what is below them, and load each when it is first used. So a package is not
# above what it shows for those who import one of its modules, but for those who import the package.
WINDOWS = ["ray_mono", "ray_mono.dag", "ray_mono.util"]

# The floors of each component, from the bottom, with | between them: its folders, and the modules at its
# root. A file imports what is on lower floors, and of its own floor only what is in its own folder. Imports
# for type checkers count, and `__init__` files: a window's stands for itself, a component's below all floors.
# Of `_private` and `util` each folder and module stands for itself.
FLOORS = {
    "common": """
        background backoff code_pickler descriptors ending explanation ids lifeline limited_log mapped_file
        missing_workers node_time output private_files process raw_error scheduling setting_rules
        source_lines start_board store_messages threads version world
        | ray_error service wait_messages
        | object_errors our_bug task_error
        | exceptions
        | short_tracebacks
    """,
    "rpc": """
        auth interruption lead sockets standby stub_method surface timers
        | framing http2_greeting reactor strangers
        | errors framed_connection reactor_socket signal_handlers tcp_door
        | framed_channel framed_handshake framed_server grpc_door reactor_channel reactor_server unix_door
        | grpc_splice
        | framed
    """,
    "gcs": """
        config forgetting node_fences pubsub raylet_client_pool task_event_log
        | job_manager node_manager worker_manager
        | storage
        | answers environment kv
        | lease_client node_health head_notice old_rows
        | actor
        | placement_group
        | driver_warnings node_drains wait_reasons
        | cluster
        | adoption dump
        | servicers
        | gcs_server
    """,
    "raylet": """
        clients config dead_nodes effects gcs_outbox
        | arguments memory reclaim_streams store_client worker
        | head_lease scheduling taken_objects
        | evacuation gcs_client wait_reasons wire
        | lease_answers
        | effect_runner
        | bundle_requests
        | cluster_events group_watches lease_requests lent_cpus local_processes withdrawals
        | drain memory_guard
        | servicer
        | raylet
    """,
    "object_manager": """
        checksums config errors keys memory_file pending_answers pressure spill_directories spill_places
        spill_report transfer_wire
        | external_place
        | external_storage
        | allocator bulk_receive ranges spill_files stored_object
        | client_holds idle_objects memory_story seams senders
        | store
        | admission backing create_queue local_object_manager node_directory spill_disk transfer_client
        | get_queue pull_manager
        | create_requests no_room spills
        | large_creates pressure_notices pulls
        | get_requests holder_streams
        | node_store
        | outgoing puller wait_reasons
        | transfer_server
        | free_forwarder
        | servicer
        | component
        | object_manager
    """,
    "core_worker": """
        config context missing_peers object_ref options task_wire
        | call_template environment object_ref_generator values
        | global_state job_warnings peers store_provider task_errors
        | interface reference_counting
        | objects
        | task_submission
        | task_execution
        | core_worker
        | process
    """,
    "api": """
        _private types cloudpickle exceptions util.annotations util.rare_logging
        util.metrics util.serialization util.check_serialize util.scheduling_strategies
        | _private.argument_checks _private.later _private.ray_children _private.internal_state
        _private.profiling
        _private.label_selectors
        | _private.placement_groups
        | _private.runtime_env
        | _private.logs
        | runtime_env job_config client_builder cross_language util.debug util.client_connect
        util.state
        | _private.timeline
        | _private.node
        | _private.remote
        | _private.state util.node_addresses
        | _private.local_mode
        | _private.driver
        | dag
        | actor remote_function _private.cancellation util.named_actors
        util.placement_group
        | _private.remote_decorator _private.worker runtime_context
        | dag.__init__ worker experimental cluster_utils util.iteration util.actor_pool util.queue util.tpu
        util.multiprocessing util.explaining
        | util.accelerators
        | util.joblib util.__init__
        | __init__
        | microbenchmark
        | scripts
        | _private.compat
        | compat
        | _private.ray_shim
    """,
}

# "path:what is matched": why its last case is no error
OPEN_MATCHES = {
    "src/common/scheduling/strategy.py:message.WhichOneof('strategy')": (
        "no kind, or one that is not followed yet: DEFAULT"
    ),
}

# Folders of python/ray_mono that are no libraries.
NO_LIBRARIES = {"_private", "microbenchmark", "scripts"}

# A library stands on the public API alone: modules that programs import, and names that the package ray_mono
# shows, wherever they are defined. Here is what else one imports.
DOORS = {
    "dag.class_node": "_private.remote.actor_metadata",
    "dag.dag_node": "common.our_bug",
    "dag.nested_nodes": "_private.remote.actor_metadata",
    "experimental.internal_kv": "core_worker.global_state core_worker.process.current",
    "experimental.locations": "_private.argument_checks core_worker.process.current",
    "experimental.tqdm_ray": """
        _private.logs.log_files _private.logs.progress_bars _private.worker core_worker.process.current
    """,
    "util.check_serialize": "core_worker.values.unpicklable",
    "util.client_connect": "_private.later",
    "util.explaining": "_private.driver.auto_init common.explanation",
    "util.joblib.ray_backend": "_private.driver.auto_init common.our_bug",
    "util.multiprocessing.pool": "_private.argument_checks _private.node.bootstrap",
    "util.multiprocessing.results": "_private.argument_checks common.short_tracebacks",
    "util.named_actors": "_private.argument_checks _private.driver.auto_init",
    "util.node_addresses": "_private.node.bootstrap core_worker.process.current",
    "util.placement_group": """
        _private.driver.auto_init _private.placement_groups.handle _private.placement_groups.request
        _private.placement_groups.table common.scheduling.labels core_worker.process.current
    """,
    "util.queue": "_private.argument_checks",
    "util.serialization": "common.code_pickler",
    "util.state": "_private.later",
    "util.tpu.nodes": "_private.state",
    "util.tpu.topology": "_private.argument_checks",
}

# A worker opens no gRPC channel, and gcs and raylet stay small.
FORBIDDEN_IMPORTS = {
    "common": {"grpc", "numpy"},
    "core_worker": {"grpc"},
    "gcs": {"grpc", "numpy"},
    "object_manager": {"grpc"},
    "raylet": {"grpc", "numpy"},
    "rpc": {"grpc", "numpy"},
}
# The one door that gRPC comes in by; loaded when the first such client arrives.
GRPC_DOORS = {"src/rpc/grpc_door.py"}

# Pieces of this file's own patterns are kept apart, so that they do not match themselves.
FORBIDDEN_TEXT = {
    "a path of one machine": re.compile("/" + r"(work|home|Users)/\w|/opt/" + "dev"),
    "the host of a package index": re.compile(
        "files.pythonhosted" + r"\.|pypi\.org/" + "simple|--extra-index" + "-url"
    ),
}


def imported_modules(path: str) -> Iterator[tuple[int, str]]:
    """Line and full name of each import, wherever in the file it is; `from a import b` counts as a.b. So does
    import_module("a.b"); other names that it is given are not known here."""
    package = Path(path).parent.parts
    package = ("ray_mono", *package[1:]) if package[0] == "src" else package[1:]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
                )
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def layer_of(module: str) -> str:
    name = module.split(".")[1] if "." in module else ""
    return name if name in LAYERS or name == "protobuf" else "api"


def test_every_component_has_its_layer() -> None:
    components = {
        path.name for path in (ROOT / "src").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert components - {"protobuf"} == set(LAYERS) - {"api"}


def test_imports_point_one_way() -> None:
    wrong = []
    for path in python_files():
        own = part(path)
        if own is None:
            continue
        for line, module in imported_modules(path):
            top = module.split(".")[0]
            if top == "ray_mono" and layer_of(module) not in LAYERS[own]:
                wrong.append(f"{path}:{line}: {own} may not import {layer_of(module)} ({module})")
            if top in FORBIDDEN_IMPORTS.get(own, ()) and path not in GRPC_DOORS:
                wrong.append(f"{path}:{line}: {own} may not import {top}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_files_are_short() -> None:
    long = {}
    for path in python_files():
        count = len(code_lines(path))
        if count > FILE_LINES_MAX:
            long[path] = count
    wrong = [f"{path}: {count} lines" for path, count in long.items() if path not in LONG_FILES]
    wrong += [f"{path}: need not be in LONG_FILES any more" for path in LONG_FILES if path not in long]
    assert not wrong, f"\nat most {FILE_LINES_MAX} lines of code, or a reason in LONG_FILES:\n" + "\n".join(
        wrong
    )


def test_functions_are_short() -> None:
    long = {}
    for path in python_files():
        lines = code_lines(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(lines.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
                if count > FUNCTION_LINES_MAX:
                    long[f"{path}::{node.name}"] = count
    wrong = [f"{name}: {count} lines" for name, count in long.items() if name not in LONG_FUNCTIONS]
    wrong += [
        f"{name}: need not be in LONG_FUNCTIONS any more" for name in LONG_FUNCTIONS if name not in long
    ]
    assert not wrong, (
        f"\nat most {FUNCTION_LINES_MAX} lines of code, or a reason in LONG_FUNCTIONS:\n" + "\n".join(wrong)
    )


def test_no_module_is_a_grab_bag() -> None:
    wrong = [path for path in python_files() if Path(path).stem in {"utils", "util", "helpers", "misc"}]
    assert not wrong, f"name these after what they hold: {wrong}"


def test_every_module_says_what_it_is() -> None:
    trees = ((path, tree(path)) for path in python_files())
    wrong = [path for path, module in trees if module.body and ast.get_docstring(module) is None]
    assert not wrong, "\nwithout a docstring:\n" + "\n".join(wrong)


def test_no_file_holds_what_belongs_to_one_machine() -> None:
    patterns = ("*.md", "docs/**/*.md", "*.in", "*.lock", "*.toml")
    others = [path for pattern in patterns for path in ROOT.glob(pattern)]
    wrong = []
    for path in [*(ROOT / name for name in python_files()), *others]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for what, pattern in FORBIDDEN_TEXT.items():
                if pattern.search(line):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {what}: {line.strip()}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_a_match_leaves_nothing_out_in_silence() -> None:
    """Its last case says that what is left cannot be: assert_never(), or an InternalError."""
    wrong = []
    for path in our_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Match) and f"{path}:{ast.unparse(node.subject)}" not in OPEN_MATCHES:
                last = node.cases[-1]
                takes_all = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None
                end = last.body[-1]
                says_so = isinstance(end, ast.Raise) or ast.unparse(end).startswith("assert_never(")
                if last.guard is not None or not takes_all or not says_so:
                    wrong.append(f"{path}:{node.lineno}: match {ast.unparse(node.subject)}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_our_own_bugs_are_internal_errors() -> None:
    """By common/our_bug.py, which says that it is one and stays where Python runs with -O. What Ray refuses
    by an AssertionError is none."""
    wrong = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path in our_files()
        if not path.startswith("python/ray_mono/dag/")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Raise) and node.exc and ast.unparse(node.exc).startswith("AssertionError")
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_core_worker_has_its_unit_tests() -> None:
    """At least so many for each 1,000 lines: it is where the complexity is."""
    num_lines = sum(
        (ROOT / path).read_text().count("\n") for path in python_files() if part(path) == "core_worker"
    )
    num_tests = sum(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for path in python_files()
        if path.startswith("tests/core_worker/") and path.endswith("_test.py")
        for node in ast.walk(tree(path))
    )
    assert 1_000 * num_tests >= UNIT_TESTS_MIN * num_lines, f"{num_tests} tests for {num_lines} lines"


def test_libraries_stand_on_the_public_api() -> None:
    public = {name for _, name in imported_modules("python/ray_mono/__init__.py")}
    wrong, used = [], set()
    for module, path in modules().items():
        folder = Path(path).relative_to("python/ray_mono").parts[0] if part(path) == "api" else ""
        if not folder or folder.endswith(".py") or folder in NO_LIBRARIES:
            continue
        library = module.removeprefix("ray_mono.")
        for line, name in imported_modules(path):
            target = name if name in modules() else name.rpartition(".")[0]
            is_inside = target in modules() and (
                layer_of(target) != "api" or target.startswith("ray_mono._private")
            )
            if is_inside and name not in public:
                door = (library, target.removeprefix("ray_mono."))
                used.add(door)
                if door[1] not in DOORS.get(library, "").split():
                    wrong.append(f"{path}:{line}: {library} may not import {name}")
    doors = {(library, door) for library, names in DOORS.items() for door in names.split()}
    wrong += [f"{library} imports {door} no more: not in DOORS" for library, door in doors - used]
    assert not wrong, "\n" + "\n".join(wrong)


# ---- the floors


def unit_of(module: str, component: str) -> str:
    """The folder, or the module at the root, that a module of a component belongs to."""
    parts = module.split(".")[1:] if component == "api" else module.split(".")[2:]
    if module in WINDOWS or not parts:
        return ".".join([*parts, "__init__"])
    is_shelf = component == "api" and parts[0] in ("_private", "util")
    return ".".join(parts[: 2 if is_shelf else 1])


@functools.cache
def modules() -> dict[str, str]:
    """Every module of ray_mono with its file."""
    found = {}
    for path in python_files():
        component = part(path)
        if component is not None:
            parts = Path(path).with_suffix("").parts
            names = ("ray_mono", *(parts[1:] if path.startswith("src/") else parts[2:]))
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def imported_parts(path: str) -> Iterator[tuple[int, str]]:
    """Line and full name of each module of ray_mono that a file imports."""
    for line, name in imported_modules(path):
        target = name if name in modules() else name.rpartition(".")[0]
        if target in modules():
            yield line, target


def packages_of(module: str) -> list[str]:
    """The packages that a module lies in."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def test_imports_point_down_the_floors() -> None:
    known, wrong = modules(), []
    for component, floors in FLOORS.items():
        level = {"__init__": -1}
        for number, floor in enumerate(floors.split("|")):
            level.update(dict.fromkeys(floor.split(), number))
        for module, path in known.items():
            if part(path) != component:
                continue
            unit = unit_of(module, component)
            if unit not in level:
                wrong.append(f"{path}: {unit} stands on no floor of {component}")
                continue
            for line, target in imported_parts(path):
                if part(known[target]) != component:
                    continue
                other = unit_of(target, component)
                if other != unit and level.get(other, -1) >= level[unit]:
                    wrong.append(f"{path}:{line}: {unit} may not import {other}, which is not below it")
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_component_has_floors() -> None:
    assert FLOORS.keys() == LAYERS.keys()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Types counted, and the packages that a module lies in, which Python runs before it."""
    needs: dict[str, set[str]] = {}
    for module, path in modules().items():
        imported = {name for _, name in imported_parts(path)}
        packages = {package for name in imported for package in packages_of(name)}
        needs[module] = (imported | packages.difference(WINDOWS, packages_of(module))) - {module}
    ends = True
    while ends:
        needed = set().union(*needs.values())
        ends = {module for module, needed_here in needs.items() if not needed_here & needs.keys()}
        ends |= needs.keys() - needed
        for module in ends:
            del needs[module]
    assert not needs, f"in circles, or between two of them: {sorted(needs)}"
