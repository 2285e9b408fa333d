"""Options are checked where they are written, and become what the core takes with Ray's defaults."""

from __future__ import annotations

from typing import Any

import pytest

import ray_mono as ray
from ray_mono._private.remote import options as option_rules
from ray_mono._private.remote.actor_metadata import of_class
from ray_mono.common.scheduling.labels import told
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.core_worker.options import ActorOptions
from ray_mono.protobuf import common_pb2
from ray_mono.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)

NOT_UTF8 = "caf\udce9"


def function() -> None: ...


class Class:
    def method(self) -> None: ...


def as_actor_options(**options: Any) -> ActorOptions:
    option_rules.check_actor_options(options)
    return option_rules.actor_options(
        options, class_name="C", is_asyncio=False, method_groups={}, namespace="mine", handle_metadata=b"h"
    )


def units(resources: ResourceSet) -> dict[str, float]:
    return resources.to_units()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"num_cpus": "a"},
            TypeError,
            "num_cpus must be 0, or a number of at least 0.0001, got 'a' of type str",
        ),
        ({"num_cpus": -1}, ValueError, "num_cpus must be 0, or a number of at least 0.0001, got -1"),
        ({"num_cpus": 1e-5}, ValueError, "num_cpus must be 0, or a number of at least 0.0001, got 1e-05"),
        ({"num_gpus": 1e-5}, ValueError, "a part of 1 of at least 0.0001, got 1e-05"),
        ({"fallback_strategy": [None]}, ValueError, r"fallback_strategy\[0\] must be a dict"),
        ({"num_cpus": True}, TypeError, "num_cpus must be 0, or a number"),
        (
            {"num_gpus": 1.5},
            ValueError,
            "num_gpus must be a whole number, or a part of 1 of at least 0.0001, got 1.5",
        ),
        ({"memory": float("inf")}, ValueError, "memory must be"),
        ({"resources": {"CPU": 1}}, ValueError, "may not hold 'CPU': use the option num_cpus"),
        (
            {"resources": {"A": -1}},
            ValueError,
            r"resources\['A'\] must be 0, or a number of at least 0.0001, got -1",
        ),
        ({"resources": {1: 1}}, TypeError, "names that are strings"),
        ({"resources": [1]}, TypeError, "resources must be a dict"),
        ({"accelerator_type": 3}, TypeError, "accelerator_type must be a string"),
        ({"scheduling_strategy": "nearby"}, ValueError, "'DEFAULT', 'SPREAD' or a strategy, got 'nearby'"),
        (
            {"scheduling_strategy": object()},
            TypeError,
            "must be 'DEFAULT', 'SPREAD' or a strategy, got <object",
        ),
        ({"placement_group": object()}, TypeError, "placement_group must be a placement group or None"),
        ({"label_selector": {"a": "b c"}}, ValueError, "label_selector: 'a' takes 'value'"),
        ({"label_selector": {"a": 1}}, TypeError, "label_selector must be a dict from labels"),
        (
            {"resources": {"x": None}},
            TypeError,
            r"resources\['x'\] must be 0, or a number of at least 0.0001, got None",
        ),
        ({"label_selector": {"zone": "!"}}, ValueError, "'zone' takes 'value'"),
        ({"fallback_strategy": [{}]}, ValueError, r"fallback_strategy\[0\] must have 'label_selector'"),
        ({"fallback_strategy": [{"num_cpus": 1}]}, ValueError, r"nothing else, got \['num_cpus'\]"),
        ({"fallback_strategy": ["a"]}, ValueError, r"fallback_strategy\[0\] must be a dict"),
        (
            {"fallback_strategy": [{"label_selector": "a"}]},
            ValueError,
            r"fallback_strategy\[0\]\['label_selector'\] must be a dict from labels to expressions, got 'a'",
        ),
        (
            {"fallback_strategy": [{"label_selector": {"a": "in("}}]},
            ValueError,
            r"fallback_strategy\[0\]\['label_selector'\]: 'a' takes",
        ),
        ({"runtime_env": {"pip": ["x"]}}, NotImplementedError, r"runtime_env\['pip'\]"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, "strings to strings"),
        (
            {"runtime_env": {"env_vars": {"A=B": "1"}}},
            ValueError,
            "no .=., and no NUL anywhere, got .A=B.: .1.",
        ),
        ({"runtime_env": {"env_vars": {"A": "1\0"}}}, ValueError, "no NUL anywhere"),
        ({"runtime_env": {"env_vars": {"": "1"}}}, ValueError, "not empty"),
        (
            {"runtime_env": {"env_vars": {"A": "\ud800"}}},
            ValueError,
            "can be encoded, got 'A': '.ud800': 'utf-8' codec",
        ),
        ({"runtime_env": {"pipp": 1}}, ValueError, "no field 'pipp'"),
        ({"numcpus": 1}, ValueError, "'numcpus' is not an option of .*num_cpus"),
    ],
)
@pytest.mark.parametrize("target", [function, Class])
def test_a_wrong_option_is_named_with_what_is_accepted(
    target: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ray.remote(**options)(target)
    with pytest.raises(error, match=message):
        ray.remote(target).options(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_returns": -1}, ValueError, "num_returns must be .* got -1"),
        ({"num_returns": "many"}, ValueError, "num_returns must be .* got 'many'"),
        ({"num_returns": "streaming"}, ValueError, "num_returns='streaming' is for generators, and function"),
        ({"num_returns": "dynamic"}, ValueError, "num_returns='dynamic' is for generators, and function"),
        ({"_generator_backpressure_num_objects": 0}, ValueError, "positive whole number, or -1 .* got 0"),
        ({"max_retries": -2}, ValueError, "max_retries must be 0, a positive whole number, or -1"),
        ({"max_calls": -1}, ValueError, "max_calls"),
        ({"retry_exceptions": [1]}, ValueError, "list of exception types"),
        ({"retry_exceptions": [BaseException]}, ValueError, "list of exception types"),
        ({"max_restarts": 1}, ValueError, "'max_restarts' is not an option of remote functions"),
        ({"object_store_memory": 1}, ValueError, "object_store_memory is for actors"),
    ],
)
def test_a_wrong_option_of_a_function_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ray.remote(**options)(function)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": ""}, ValueError, "name must be a string that is not empty"),
        ({"namespace": ""}, ValueError, "namespace must be"),
        *(
            ({option: value}, ValueError, f"{option} must .*valid Unicode, got .*caf.udce9")
            for option, value in (
                ("name", NOT_UTF8),
                ("namespace", NOT_UTF8),
                ("resources", {NOT_UTF8: 1}),
            )
        ),
        ({"concurrency_groups": {NOT_UTF8: 1}}, ValueError, "concurrency_groups must be .*caf.udce9"),
        ({"lifetime": "forever"}, ValueError, "'detached', 'non_detached' or None, got 'forever'"),
        ({"get_if_exists": True}, ValueError, "needs the actor's name"),
        ({"max_concurrency": 0}, ValueError, "max_concurrency"),
        ({"max_pending_calls": 0}, ValueError, "max_pending_calls"),
        ({"max_restarts": -2}, ValueError, "max_restarts"),
        ({"concurrency_groups": {"io": 0}}, ValueError, "concurrency_groups"),
        ({"num_returns": 2}, ValueError, "'num_returns' is not an option of actors"),
    ],
)
def test_a_wrong_option_of_an_actor_class_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ray.remote(**options)(Class)


def test_wrong_method_options_are_refused() -> None:
    with pytest.raises(ValueError, match="'num_cpus' is not an option of actor methods"):
        ray.method(num_cpus=1)
    with pytest.raises(ValueError, match="num_returns"):
        ray.method(num_returns=-1)
    with pytest.raises(TypeError, match=r"got method\(3\)"):
        ray.method(3)


def test_a_bare_method_decorator_leaves_the_method_as_it_is() -> None:
    def plain(self: object) -> int:
        return 1

    assert ray.method(plain) is plain
    assert ray.method()(plain) is plain


def test_none_means_the_default() -> None:
    option_rules.check_task_options(dict.fromkeys(option_rules._TASK))
    option_rules.check_actor_options(dict.fromkeys(option_rules._ACTOR))
    # No placement group is more than the default: a caller that captures has no say then. And no CPU is less.
    rest = option_rules._TASK.keys() - {"placement_group", "num_cpus"}
    assert option_rules.task_options(dict.fromkeys(rest), "f") == option_rules.task_options({}, "f")


def test_a_task_takes_one_cpu_and_three_retries_unless_it_says_otherwise() -> None:
    plain = option_rules.task_options({}, "f")
    assert (plain.name, units(plain.resources), plain.max_retries, plain.num_returns) == (
        "f",
        {"CPU": 1},
        3,
        1,
    )
    other = option_rules.task_options({"num_cpus": 0, "resources": {"A": 0.5}, "num_gpus": 1}, "f")
    assert units(other.resources) == {"A": 0.5, "GPU": 1}
    typed = option_rules.task_options({"accelerator_type": "H100", "retry_exceptions": [KeyError]}, "f")
    assert units(typed.resources) == {"CPU": 1, "accelerator_type:H100": 0.001}
    for options in ({"num_cpus": None}, {"num_cpus": None, "num_gpus": None}):
        assert units(option_rules.task_options(options, "f").resources) == {}, "as in Ray"
    assert units(option_rules.task_options({"num_gpus": None}, "f").resources) == {"CPU": 1}
    assert typed.retry_exceptions == (KeyError,)


@pytest.mark.parametrize(
    ("options", "held", "to_place"),
    [
        ({}, {}, {"CPU": 1}),
        ({"memory": 100}, {"memory": 100}, {"CPU": 1, "memory": 100}),
        ({"object_store_memory": 9}, {"object_store_memory": 9}, {"CPU": 1, "object_store_memory": 9}),
        ({"num_cpus": 2}, {"CPU": 2}, {"CPU": 2}),
        ({"num_cpus": 0}, {}, {}),
        ({"num_gpus": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}),
        ({"resources": {"A": 1}, "num_cpus": 0}, {"A": 1}, {"A": 1}),
    ],
)
def test_an_actor_needs_a_cpu_to_be_placed_and_holds_what_it_asks_for(
    options: dict[str, Any], held: dict[str, float], to_place: dict[str, float]
) -> None:
    made = as_actor_options(**options)
    assert (units(made.resources), units(made.placement_resources)) == (held, to_place)


def test_actor_options_become_what_the_core_takes() -> None:
    made = as_actor_options(name="n", lifetime="detached", max_restarts=-1, concurrency_groups={"io": 2})
    assert (made.name, made.namespace, made.is_detached, made.max_restarts) == ("n", "mine", True, -1)
    assert made.concurrency_groups == (("io", 2, ()),) and made.handle_metadata == b"h"
    assert as_actor_options(name="n", namespace="other").namespace == "other"


def test_actors_with_coroutine_methods_are_async() -> None:
    class Async:
        async def go(self) -> None: ...

    assert of_class(Async).is_asyncio and not of_class(Class).is_asyncio


def test_a_method_in_a_group_that_the_actor_does_not_have_is_refused() -> None:
    class Grouped:
        @ray.method(concurrency_group="io")
        def read(self) -> None: ...

    metadata = of_class(Grouped)
    assert metadata.method_groups() == {"read": "io"}
    with pytest.raises(ValueError, match="Grouped.read is in the concurrency group 'io'"):
        option_rules._groups({}, metadata.method_groups(), "Grouped")
    assert option_rules._groups({"io": 2}, metadata.method_groups(), "Grouped") == (("io", 2, ("read",)),)


def test_parts_of_a_byte_are_left_out() -> None:
    assert (
        option_rules.task_options({"memory": 2.9, "object_store_memory": 1.5}, "f").resources
        == option_rules.task_options({"memory": 2, "object_store_memory": 1}, "f").resources
    )


def labels_of(**options: Any) -> tuple[Strategy, list[str]]:
    """The strategy, and what it asks of labels, for people."""
    message = option_rules.task_options(options, "f").strategy
    strategy = Strategy.from_proto(message or common_pb2.SchedulingStrategy())
    return strategy, [told([selector]) for selector in strategy.selectors]


def test_a_label_selector_goes_with_every_strategy() -> None:
    selector = {"zone": "in(a, b)", "ray.io/market-type": "!spot"}
    strategy, asked = labels_of(label_selector=selector)
    assert asked == ["ray.io/market-type != spot and zone in (a, b)"]
    assert strategy.kind is StrategyKind.DEFAULT
    assert labels_of(label_selector=selector, scheduling_strategy="SPREAD")[0].kind is StrategyKind.SPREAD
    affinity = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    bound = labels_of(label_selector=selector, scheduling_strategy=affinity)[0]
    assert bound.only_node_id == b"\xab" * 28 and bound.selectors == strategy.selectors


def test_fallbacks_follow_the_label_selector_in_their_order() -> None:
    fallbacks = [{"label_selector": {"zone": "b"}}, {"label_selector": {}}]
    assert labels_of(label_selector={"zone": "a"}, fallback_strategy=fallbacks)[1] == [
        "zone = a",
        "zone = b",
        "any labels",
    ]
    assert labels_of(fallback_strategy=fallbacks)[1] == ["any labels", "zone = b", "any labels"]
    assert labels_of(fallback_strategy=[fallbacks[0], {"label_selector": None}])[1][-1] == "any labels"
    assert labels_of(label_selector=None, fallback_strategy=None)[1] == labels_of(label_selector={})[1] == []


def test_the_soft_part_of_a_label_strategy_is_preferred_and_not_asked_for() -> None:
    strategy = NodeLabelSchedulingStrategy({"zone": In("a")}, soft={"gpu": Exists()})
    assert labels_of(scheduling_strategy=strategy)[1] == ["zone = a and gpu is there", "zone = a"]
    only_soft = NodeLabelSchedulingStrategy(None, soft={"gpu": DoesNotExist()})
    assert labels_of(scheduling_strategy=only_soft)[1] == ["gpu is absent", "any labels"]
    hard = NodeLabelSchedulingStrategy({"zone": NotIn("a")})
    assert labels_of(scheduling_strategy=hard, label_selector={"b": "c"})[1] == ["b = c and zone != a"]


def test_an_actor_class_lists_its_methods() -> None:
    assert {"remote", "options"} <= set(dir(ray.remote(Class))) and set(dir(Class)) <= set(
        dir(ray.remote(Class))
    )
