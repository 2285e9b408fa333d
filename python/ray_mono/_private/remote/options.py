"""The options of remote functions, actor classes and methods.

They are checked where they are written, and turned into what the core takes.

Every option that Ray knows is known here. An unknown name is a ValueError, a wrong type a TypeError, a wrong
value a ValueError: each names the option, what was given and what is accepted. None means the default; for
`placement_group` it means that there is none, whatever the caller hands down, and for `num_cpus` of a task
that it needs no CPU, as in Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_mono._private.argument_checks import (
    AMOUNT_LEAST,
    AMOUNT_MAX,
    COUNT_MAX,
    RETURNS_MAX,
    check_resource_name,
    is_sendable,
    plain,
)
from ray_mono._private.remote import scheduling_option
from ray_mono._private.runtime_env import runtime_env
from ray_mono.common.scheduling.resources import CPU, GPU, MEMORY, OBJECT_STORE_MEMORY, ResourceSet
from ray_mono.core_worker.options import (
    DYNAMIC_RETURNS,
    STREAMING_RETURNS,
    ActorOptions,
    CallRules,
    TaskOptions,
)

# As in Ray: so many calls run at once if the methods are coroutines and the user names no number.
ASYNC_MAX_CONCURRENCY = 1000
# A node with such an accelerator has 1 of this resource; asking for a little places the task there.
ACCELERATOR_RESOURCE_PREFIX = "accelerator_type:"
ACCELERATOR_AMOUNT = 0.001
RESOURCE_KEYWORDS = {
    CPU: "num_cpus",
    GPU: "num_gpus",
    MEMORY: "memory",
    OBJECT_STORE_MEMORY: "object_store_memory",
}

Options = Mapping[str, Any]


@dataclass(frozen=True)
class _Option:
    types: tuple[type, ...]
    accepts: str
    is_valid: Callable[[Any], bool] = lambda value: True
    takes_bool: bool = False
    most: int | None = None

    def check(self, name: str, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, self.types) or (isinstance(value, bool) and not self.takes_bool):
            raise TypeError(f"{name} must be {self.accepts}, got {value!r} of type {type(value).__name__}")
        if self.most is not None and isinstance(value, (int, float)) and value > self.most:
            raise ValueError(f"{name} must be {self.accepts}, and at most {self.most}, got {value!r}")
        if not self.is_valid(value):
            raise ValueError(f"{name} must be {self.accepts}, got {value!r}")


def _is_amount(value: Any) -> bool:
    return value == 0 or value >= AMOUNT_LEAST


def _is_accelerator_amount(value: Any) -> bool:
    return _is_amount(value) and (value <= 1 or (value < math.inf and value == int(value)))


def _count(accepts: str, least: int, forever: bool = False) -> _Option:
    def is_valid(value: Any) -> bool:
        return value >= least or (forever and value == -1)

    return _Option((int,), accepts, is_valid, most=COUNT_MAX)


def _is_retry_list(value: Any) -> bool:
    return isinstance(value, bool) or all(isinstance(e, type) and issubclass(e, Exception) for e in value)


_AMOUNT = _Option((int, float), f"0, or a number of at least {AMOUNT_LEAST}", _is_amount, most=AMOUNT_MAX)
_BYTES = _Option((int, float), "a number of bytes, at least 0", lambda value: value >= 0, most=AMOUNT_MAX)
_FLAG = _Option((bool,), "True or False", takes_bool=True)
_COUNT_OR_FOREVER = _count("0, a positive whole number, or -1 for no limit", 0, forever=True)
_LIMIT = _count("a positive whole number, or -1 for no limit", 1, forever=True)
_POSITIVE = _count("a positive whole number", 1)
_NAME = _Option(
    (str,), "a string that is not empty, and valid Unicode", lambda value: bool(value) and is_sendable(value)
)
# Ray's libraries describe their tasks and calls so; nothing is done with it, as in Ray's core.
_DESCRIPTION = _Option((dict,), "a dict")
_RETRY_EXCEPTIONS = _Option(
    (bool, list, tuple), "True, False or a list of exception types", _is_retry_list, takes_bool=True
)
_NUM_RETURNS = _Option(
    (int, str),
    "a whole number of at least 0, 'dynamic' or 'streaming'",
    lambda value: value in ("dynamic", "streaming") if isinstance(value, str) else value >= 0,
    most=RETURNS_MAX,
)

_COMMON = {
    "num_cpus": _AMOUNT,
    "num_gpus": _Option(
        (int, float),
        f"a whole number, or a part of 1 of at least {AMOUNT_LEAST}",
        _is_accelerator_amount,
        most=AMOUNT_MAX,
    ),
    "memory": _BYTES,
    "object_store_memory": _BYTES,
    "resources": _Option((dict,), f"a dict from names to {_AMOUNT.accepts}"),
    "accelerator_type": _NAME,
    "name": _NAME,
    "runtime_env": _Option((dict, Mapping), "a dict"),
    "scheduling_strategy": _Option((object,), "'DEFAULT', 'SPREAD' or a strategy", takes_bool=True),
    "placement_group": _Option((object,), "a placement group", takes_bool=True),
    "placement_group_bundle_index": _Option((int,), "a whole number"),
    "placement_group_capture_child_tasks": _FLAG,
    "label_selector": _Option((dict,), "a dict"),
    "fallback_strategy": _Option((list,), "a list of dicts"),
    "enable_task_events": _FLAG,
    "_labels": _DESCRIPTION,
    "_metadata": _DESCRIPTION,
}
_METHOD = {
    "num_returns": _NUM_RETURNS,
    "_generator_backpressure_num_objects": _LIMIT,
    "max_task_retries": _COUNT_OR_FOREVER,
    "retry_exceptions": _RETRY_EXCEPTIONS,
    "concurrency_group": _NAME,
    "name": _NAME,
    "enable_task_events": _FLAG,
    "_labels": _DESCRIPTION,
}
_TASK = {
    **_COMMON,
    "name": _Option((str,), "a string of valid Unicode", is_sendable),
    "num_returns": _NUM_RETURNS,
    "_generator_backpressure_num_objects": _LIMIT,
    "max_retries": _COUNT_OR_FOREVER,
    "retry_exceptions": _RETRY_EXCEPTIONS,
    "max_calls": _count("a whole number of at least 0", 0),
}
_ACTOR = {
    **_COMMON,
    "namespace": _NAME,
    "lifetime": _Option(
        (str,), "'detached', 'non_detached' or None", lambda value: value in ("detached", "non_detached")
    ),
    "get_if_exists": _FLAG,
    "_actor_generator_backpressure_num_objects": _LIMIT,
    "max_restarts": _COUNT_OR_FOREVER,
    "max_task_retries": _COUNT_OR_FOREVER,
    "max_concurrency": _POSITIVE,
    "max_pending_calls": _LIMIT,
    "concurrency_groups": _Option(
        (dict,),
        "a dict from names to positive whole numbers",
        lambda value: all(
            isinstance(name, str)
            and name
            and is_sendable(name)
            and type(most) is int
            and 1 <= most <= COUNT_MAX
            for name, most in value.items()
        ),
    ),
    "allow_out_of_order_execution": _FLAG,
}


def check_task_options(options: Options) -> None:
    """Raises TypeError or ValueError, naming the option, unless all are right. Numbers of other libraries
    among them become Python's.
    """
    _check(options, _TASK, "remote functions")
    if options.get("object_store_memory") is not None:
        # As in Ray, where it names it all the same.
        raise ValueError(
            "object_store_memory is for actors, and not an option of remote functions: leave it out"
        )


def check_actor_options(options: Options) -> None:
    """As check_task_options, for actor classes."""
    _check(options, _ACTOR, "actors")
    if options.get("get_if_exists") and not options.get("name"):
        raise ValueError("get_if_exists=True needs the actor's name: give name=... too")


def check_method_options(options: Options) -> None:
    """As check_task_options, for actor methods."""
    _check(options, _METHOD, "actor methods")


def _check(options: Options, table: Mapping[str, _Option], of_what: str) -> None:
    _make_plain(options)
    for name, value in options.items():
        option = table.get(name)
        if option is None:
            known = ", ".join(sorted(table))
            raise ValueError(f"{name!r} is not an option of {of_what}; options are: {known}")
        option.check(name, value)
    _check_resources(options.get("resources"))
    scheduling_option.strategy_of(options)
    if options.get("runtime_env") is not None:
        runtime_env.check(options["runtime_env"])


def _make_plain(options: Options) -> None:
    for name, value in list(options.items()):
        if name in ("resources", "concurrency_groups") and isinstance(value, dict):
            changed: Any = {key: plain(amount) for key, amount in value.items()}
        else:
            changed = plain(value)
        if changed is not value and isinstance(options, dict):
            options[name] = changed


def check_generator(options: Options, is_generator: bool, name: str) -> None:
    """Raises ValueError where the options of `name` are those of a generator, which it is not."""
    num_returns = options.get("num_returns")
    if isinstance(num_returns, str) and not is_generator:
        raise ValueError(
            f"num_returns={num_returns!r} is for generators, and {name} is none: it has no 'yield'"
        )


def _num_returns(options: Options, is_generator: bool) -> int:
    given = options.get("num_returns")
    if given is None:
        return STREAMING_RETURNS if is_generator else 1
    if isinstance(given, int):
        return given
    return STREAMING_RETURNS if given == "streaming" else DYNAMIC_RETURNS


def _backpressure(options: Options) -> int:
    return max(0, options.get("_generator_backpressure_num_objects") or 0)


def _check_resources(resources: Any) -> None:
    for name, amount in (resources or {}).items():
        check_resource_name(name)
        if name in RESOURCE_KEYWORDS:
            raise ValueError(
                f"resources may not hold {name!r}: use the option {RESOURCE_KEYWORDS[name]} instead"
            )
        if amount is None:
            raise TypeError(f"resources[{name!r}] must be {_AMOUNT.accepts}, got None")
        _AMOUNT.check(f"resources[{name!r}]", amount)


def _resources(options: Options) -> dict[str, float]:
    amounts: dict[str, float] = dict(options.get("resources") or {})
    for name, keyword in RESOURCE_KEYWORDS.items():
        if options.get(keyword) is not None:
            # A byte has no parts: as Ray does, they are left out.
            amounts[name] = (
                int(options[keyword]) if name in (MEMORY, OBJECT_STORE_MEMORY) else options[keyword]
            )
    if options.get("accelerator_type"):
        amounts[ACCELERATOR_RESOURCE_PREFIX + options["accelerator_type"]] = ACCELERATOR_AMOUNT
    return amounts


def _retries(given: Any) -> bool | tuple[type[BaseException], ...]:
    return tuple(given) if isinstance(given, (list, tuple)) else bool(given)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def task_options(options: Options, function_name: str, is_generator: bool = False) -> TaskOptions:
    """What the core takes for checked options of a remote function.

    By default 1 CPU, 1 return (of a generator its items), 3 retries.
    """
    cpus = 0 if options.get("num_cpus", 1) is None else 1
    return TaskOptions(
        name=options.get("name") or function_name,
        num_returns=_num_returns(options, is_generator),
        generator_backpressure_num_objects=_backpressure(options),
        resources=ResourceSet.from_units({CPU: cpus, **_resources(options)}),
        max_retries=_or(options.get("max_retries"), 3),
        retry_exceptions=_retries(options.get("retry_exceptions")),
        max_calls=options.get("max_calls") or 0,
        hides_events=options.get("enable_task_events") is False,
        strategy=scheduling_option.strategy_of(options),
        bundles=scheduling_option.bundles_of(options),
        inherits_group=scheduling_option.inherits_group(options),
        joins_group=scheduling_option.joins_group(options),
        runtime_env=runtime_env.inherited(options.get("runtime_env")),
    )


def actor_options(
    options: Options,
    *,
    class_name: str,
    is_asyncio: bool,
    method_groups: Mapping[str, str],
    namespace: str,
    handle_metadata: bytes,
) -> ActorOptions:
    """What the core takes for checked options of an actor class.

    By default an actor needs 1 CPU to be placed, and holds nothing while it lives. One that asks for any
    resource besides memory, or memory of the store, holds all that it asks for, and 1 CPU unless it says
    otherwise. This is Ray's rule.

    Args:
        method_groups: the concurrency group of each method that names one.
        namespace: of this driver, for actors that name none.
        handle_metadata: what get_actor makes a handle of.
    """
    held = _resources(options)
    to_place = {CPU: 1, **held}
    if held.keys() - {MEMORY, OBJECT_STORE_MEMORY}:
        held = to_place
    return ActorOptions(
        name=options.get("name") or "",
        namespace=options.get("namespace") or namespace,
        get_if_exists=bool(options.get("get_if_exists")),
        is_detached=options.get("lifetime") == "detached",
        class_name=class_name,
        resources=ResourceSet.from_units(held),
        placement_resources=ResourceSet.from_units(to_place),
        max_restarts=options.get("max_restarts") or 0,
        max_task_retries=options.get("max_task_retries") or 0,
        max_concurrency=options.get("max_concurrency") or (ASYNC_MAX_CONCURRENCY if is_asyncio else 1),
        is_asyncio=is_asyncio,
        hides_events=options.get("enable_task_events") is False,
        rules=call_rules(options, is_asyncio),
        concurrency_groups=_groups(options.get("concurrency_groups") or {}, method_groups, class_name),
        strategy=scheduling_option.strategy_of(options),
        bundles=scheduling_option.bundles_of(options),
        inherits_group=scheduling_option.inherits_group(options),
        joins_group=scheduling_option.joins_group(options),
        runtime_env=runtime_env.inherited(options.get("runtime_env")),
        handle_metadata=handle_metadata,
    )


def call_rules(options: Options, is_asyncio: bool) -> CallRules:
    """What the options of an actor class say of calls to it. Raises ValueError as _is_unordered does."""
    return CallRules(
        max_pending_calls=options.get("max_pending_calls") or -1,
        is_unordered=_is_unordered(options, is_asyncio),
        is_concurrent=is_asyncio
        or (options.get("max_concurrency") or 1) > 1
        or bool(options.get("concurrency_groups")),
        waits_for_restart=bool(options.get("max_task_retries")),
    )


def _is_unordered(options: Options, is_asyncio: bool) -> bool:
    """Whether calls of one caller may overtake each other.

    Raises ValueError where their order is asked for and cannot be kept.
    """
    given: bool | None = options.get("allow_out_of_order_execution")
    is_concurrent = is_asyncio or (options.get("max_concurrency") or 1) > 1
    if is_concurrent and given is False:
        raise ValueError(
            "allow_out_of_order_execution=False is for actors that run one call at a time: not for async"
            " methods or max_concurrency > 1"
        )
    return is_concurrent if given is None else given


def method_options(
    options: Options,
    actor_max_task_retries: int,
    is_generator: bool = False,
    actor_enable_task_events: bool = True,
) -> dict[str, Any]:
    """Keyword arguments of CoreInterface.method_template, for checked options of a method."""
    return {
        "num_returns": _num_returns(options, is_generator),
        "generator_backpressure_num_objects": _backpressure(options),
        "max_task_retries": _or(options.get("max_task_retries"), actor_max_task_retries),
        "retry_exceptions": _retries(options.get("retry_exceptions")),
        "concurrency_group": options.get("concurrency_group") or "",
        "hides_events": not _or(options.get("enable_task_events"), actor_enable_task_events),
        "task_name": options.get("name") or "",
    }


def _groups(
    groups: Mapping[str, int], method_groups: Mapping[str, str], class_name: str
) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    for method, group in method_groups.items():
        if group not in groups:
            raise ValueError(
                f"{class_name}.{method} is in the concurrency group {group!r}, which the actor does not"
                f" have: it has {sorted(groups)}"
            )
    return tuple(
        (name, most, tuple(method for method, group in method_groups.items() if group == name))
        for name, most in groups.items()
    )
