"""ray_mono: tasks, actors and objects on a cluster of real processes. `import ray_mono as ray` and go on.

Every process of a cluster imports this package, also those that never see user code, so this file imports
nothing: a name is loaded from its module when it is first used (PEP 562), and type checkers read the imports
below.

In a checkout and in Bazel's runfiles the components lie in src/, beside python/; there this package finds
them under its own name. Links are not resolved: that would leave Bazel's sandbox.
"""

import os
import sys

_sources = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "src")
if os.path.isdir(_sources):
    __path__.append(_sources)

# The name that type checkers take for true; typing itself is not needed to say so.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ray_mono import actor as actor
    from ray_mono import cloudpickle as cloudpickle
    from ray_mono import cross_language as cross_language
    from ray_mono import exceptions as exceptions
    from ray_mono import experimental as experimental
    from ray_mono import job_config as job_config
    from ray_mono import remote_function as remote_function
    from ray_mono import runtime_context as runtime_context
    from ray_mono import runtime_env as runtime_env
    from ray_mono import types as types
    from ray_mono import util as util
    from ray_mono import worker as worker
    from ray_mono._private.cancellation import cancel as cancel
    from ray_mono._private.logs.logging_config import LoggingConfig as LoggingConfig
    from ray_mono._private.remote_decorator import remote as remote
    from ray_mono._private.state import available_resources as available_resources
    from ray_mono._private.state import cluster_resources as cluster_resources
    from ray_mono._private.state import nodes as nodes
    from ray_mono._private.timeline import timeline as timeline
    from ray_mono._private.worker import LOCAL_MODE as LOCAL_MODE
    from ray_mono._private.worker import SCRIPT_MODE as SCRIPT_MODE
    from ray_mono._private.worker import WORKER_MODE as WORKER_MODE
    from ray_mono._private.worker import get as get
    from ray_mono._private.worker import get_actor as get_actor
    from ray_mono._private.worker import get_gpu_ids as get_gpu_ids
    from ray_mono._private.worker import init as init
    from ray_mono._private.worker import is_initialized as is_initialized
    from ray_mono._private.worker import kill as kill
    from ray_mono._private.worker import put as put
    from ray_mono._private.worker import (
        run_function_on_all_workers as run_function_on_all_workers,
    )
    from ray_mono._private.worker import shutdown as shutdown
    from ray_mono._private.worker import wait as wait
    from ray_mono.actor import ActorClass as ActorClass
    from ray_mono.actor import ActorHandle as ActorHandle
    from ray_mono.actor import exit_actor as exit_actor
    from ray_mono.actor import method as method
    from ray_mono.common.ids import ActorClassID as ActorClassID
    from ray_mono.common.ids import ActorID as ActorID
    from ray_mono.common.ids import FunctionID as FunctionID
    from ray_mono.common.ids import JobID as JobID
    from ray_mono.common.ids import NodeID as NodeID
    from ray_mono.common.ids import PlacementGroupID as PlacementGroupID
    from ray_mono.common.ids import TaskID as TaskID
    from ray_mono.common.ids import UniqueID as UniqueID
    from ray_mono.common.ids import WorkerID as WorkerID

    __commit__: str
    __version__: str
    from ray_mono.client_builder import ClientBuilder as ClientBuilder
    from ray_mono.client_builder import client as client
    from ray_mono.core_worker.object_ref import ObjectRef as ObjectID  # noqa: F401
    from ray_mono.core_worker.object_ref import ObjectRef as ObjectRef
    from ray_mono.core_worker.object_ref_generator import (
        DynamicObjectRefGenerator as DynamicObjectRefGenerator,
    )
    from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator as ObjectRefGenerator
    from ray_mono.cross_language import Language as Language
    from ray_mono.cross_language import java_actor_class as java_actor_class
    from ray_mono.cross_language import java_function as java_function
    from ray_mono.runtime_context import get_runtime_context as get_runtime_context
    from ray_mono.util.explaining import explain as explain

# name -> module that has it, or "module:other name" there, or "" for a module of this package itself
_EXPORTS = {
    **dict.fromkeys(
        (
            "actor cloudpickle cross_language exceptions experimental job_config remote_function"
            " runtime_context runtime_env"
            " types util worker"
        ).split(),
        "",
    ),
    "remote": "_private.remote_decorator",
    "timeline": "_private.timeline",
    **dict.fromkeys("available_resources cluster_resources nodes".split(), "_private.state"),
    **dict.fromkeys(
        "LOCAL_MODE SCRIPT_MODE WORKER_MODE get get_actor get_gpu_ids init is_initialized kill put"
        " run_function_on_all_workers shutdown wait".split(),
        "_private.worker",
    ),
    **dict.fromkeys("ActorClass ActorHandle exit_actor method".split(), "actor"),
    "cancel": "_private.cancellation",
    "explain": "util.explaining",
    **dict.fromkeys(
        "ActorClassID ActorID FunctionID JobID NodeID PlacementGroupID TaskID UniqueID WorkerID".split(),
        "common.ids",
    ),
    **dict.fromkeys("Language java_actor_class java_function".split(), "cross_language"),
    **dict.fromkeys("ClientBuilder client".split(), "client_builder"),
    "LoggingConfig": "_private.logs.logging_config",
    # As in Ray since 1.0: the old name of the same.
    "ObjectID": "core_worker.object_ref:ObjectRef",
    "ObjectRef": "core_worker.object_ref",
    **dict.fromkeys(
        "DynamicObjectRefGenerator ObjectRefGenerator".split(), "core_worker.object_ref_generator"
    ),
    "__commit__": "common.version:COMMIT",
    "__version__": "common.version:VERSION",
    "get_runtime_context": "runtime_context",
}

__all__ = list(_EXPORTS)

# Packages of Ray that programs import beside the core.
_LATER = frozenset("air autoscaler dashboard data job_submission llm rllib serve train tune workflow".split())


def __getattr__(name: str) -> object:
    """Loads an exported name on its first use."""
    place = _EXPORTS.get(name)
    if place is None:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib.util

        # Somebody may have brought it: a package that adds its own folder to ours.
        if importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        message = f"ray.{name} is not part of ray_mono yet"
        # `from ray_mono import tune` would forget what an AttributeError says; hasattr() and getattr() want
        # one. Where compat's old names are asked first, the caller is some further up.
        caller = sys._getframe(1)
        while caller.f_back is not None and caller.f_code.co_name in ("__getattr__", "get_attribute"):
            caller = caller.f_back
        if caller.f_code.co_name == "_handle_fromlist":
            raise ImportError(message, name=f"{__name__}.{name}")
        raise AttributeError(message)
    import importlib

    module_name, _, other_name = place.partition(":")
    try:
        module = importlib.import_module(f"{__name__}.{module_name or name}")
    except ImportError as error:
        if not (error.name or "").startswith(f"{__name__}.protobuf"):
            raise
        raise ImportError(_MISSING_GENERATED_CODE) from None
    found = {name: getattr(module, other_name or name) if module_name else module}
    if module_name and not other_name:
        # Its other names too: a program's __del__ at its end may ask for one, when nothing can be imported
        # any more.
        found = {other: getattr(module, other) for other, where in _EXPORTS.items() if where == place}
    globals().update(found)
    return found[name]


# For whoever starts from a bare checkout; `python -m ray_mono.scripts` prints it too.
_MISSING_GENERATED_CODE = (
    "the code generated from protobuf/ is missing: run `pip install -e .` here, or `./bazelw run //:demo`"
)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
