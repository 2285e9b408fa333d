"""Graphs of calls on a real cluster: what is bound is run, each node once for each execution."""

from __future__ import annotations

import asyncio
import functools
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
import ray_mono.dag as dag_module
from ray_mono import cloudpickle
from ray_mono.dag import (
    ClassMethodNode,
    ClassNode,
    DAGInputData,
    DAGNode,
    FunctionNode,
    InputNode,
    MultiOutputNode,
    plot,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

GET_TIMEOUT_S = 60
# A program's own: what `from … import *` of a program would give.
get = functools.partial(ray.get, timeout=GET_TIMEOUT_S)


@ray.remote
def add(first: Any, second: Any = 1) -> Any:
    return first + second


@ray.remote
def tell(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@ray.remote(num_returns=2)
def split(pair: Any) -> Any:
    return pair


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self, count: int = 0, other: Any = None) -> None:
        self.count = count
        self.other = other

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def add_to_other(self, number: int) -> int:
        return int(ray.get(self.other.add.remote(number)))

    @ray.method(num_returns=2)
    def both(self, number: int) -> tuple[int, int]:
        return self.count, number


def abs_sum(first: int, second: int) -> int:
    return abs(first) + second


@dataclass
class Box:
    content: Any


# ---------------------------------------------------------------- functions


def test_a_graph_of_functions_runs_from_its_leaves() -> None:
    graph = add.bind(add.bind(1), second=add.bind(4))
    assert isinstance(graph, FunctionNode)
    assert get(graph.execute()) == 7
    assert graph.execute() != graph.execute()


def test_options_are_those_that_were_bound() -> None:
    node = tell.options(num_cpus=0.5, name="told").bind()
    assert node.get_options() == {"num_cpus": 0.5, "name": "told"} and add.bind(1).get_options() == {}

    @ray.remote(num_cpus=0.25)
    def held() -> Any:
        return ray.get_runtime_context().get_assigned_resources()

    assert get(held.options(num_cpus=0.5).bind().execute()) == {"CPU": 0.5}


def test_a_shared_node_is_run_once() -> None:
    counter = Counter.remote()
    shared = counter.add.bind(1)
    assert get(add.bind(shared, shared).execute()) == 2
    assert get(counter.add.remote(0)) == 1


def test_nodes_inside_containers_and_objects_are_found() -> None:
    graph = tell.bind([add.bind(1), {"key": (add.bind(2),)}], {add.bind(5)}, box=Box(add.bind(3)))
    ((numbers, of_set), named) = get(graph.execute())
    assert get([numbers[0], numbers[1]["key"][0], named["box"].content, *of_set]) == [2, 3, 4, 6]


def test_arguments_without_nodes_arrive_as_they_are() -> None:
    array, ref = np.arange(100_000), ray.put("value")
    ((told_array, box), _) = get(tell.bind(array, Box([ref])).execute())
    assert np.array_equal(told_array, array) and get(box.content[0]) == "value"
    assert get(add.bind(ref, "!").execute()) == "value!"


def test_several_returns_of_a_function_are_a_list() -> None:
    assert get(split.bind((1, 2)).execute()) == [1, 2]
    ((refs,), _) = get(tell.bind(split.bind((1, 2))).execute())
    assert get(refs) == [1, 2]


def test_a_wrong_call_and_a_failing_one_say_so() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'first'"):
        add.bind().execute()
    with pytest.raises(TypeError, match="can only concatenate str"):
        get(add.bind(add.bind("a")).execute())


def test_a_long_chain_is_no_problem() -> None:
    graph = add.bind(0, 0)
    for _ in range(2000):
        graph = MultiOutputNode([graph])
    result = graph.execute()
    for _ in range(2000):
        (result,) = result
    assert get(result) == 0


# ---------------------------------------------------------------- inputs


def test_the_only_argument_is_the_input_itself() -> None:
    with InputNode() as given:
        graph = add.bind(given, 2)
    assert get(graph.execute(5)) == 7 and get(graph.execute(ray.put(6))) == 8
    assert given.execute(3) == 3


def test_inputs_are_read_by_position_by_name_and_by_item() -> None:
    with InputNode() as given:
        by_position, by_name = add.bind(given[0], given[1]), add.bind(given.a, given["b"])
        mixed, attribute = add.bind(given[0], given.y), add.bind(given.imag, given.real)
    assert get(by_position.execute(5, 6)) == 11 and get(by_position.execute([5, 6])) == 11
    assert get(by_name.execute(a=5, b=6)) == 11
    assert get(mixed.execute(5, y=6)) == 11
    assert get(attribute.execute(1j)) == 1


def test_several_arguments_together_are_one_value() -> None:
    with InputNode() as given:
        graph = tell.bind(given)
    ((data,), _) = get(graph.execute(1, key=2))
    assert isinstance(data, DAGInputData) and (data[0], data["key"]) == (1, 2)


def test_inputs_that_are_not_there_are_errors_of_the_execution() -> None:
    with InputNode() as given:
        graph = add.bind(given.a, given["b"])
    with pytest.raises(KeyError, match="b"):
        graph.execute(a=1)
    with pytest.raises(AttributeError, match="a"):
        graph.execute({"a": 1})
    with pytest.raises(ValueError, match="by position or by name"):
        DAGInputData()[None]  # type: ignore[index]


def test_an_input_may_tell_its_types() -> None:
    with InputNode(input_type={0: int, "word": str}) as given:
        assert (given[0].get_result_type(), given.word.get_result_type(), given.x.get_result_type()) == (
            "int",
            "str",
            None,
        )
        assert given[0].key == 0 and given.get_result_type() is None
    assert InputNode(input_type=int).get_result_type() == "int"


def test_a_graph_has_one_input_made_in_a_with() -> None:
    with pytest.raises(AssertionError, match="with statement"):
        add.bind(InputNode()).execute(1)
    with InputNode() as first, InputNode() as second:
        graph = add.bind(first, second)
    with pytest.raises(AssertionError, match="has 2"):
        graph.execute(1)
    with pytest.raises(ValueError, match="takes no arguments"):
        InputNode(1)
    with pytest.raises(AssertionError, match="whole number or a string"):
        first[1.5]  # type: ignore[index]


# ---------------------------------------------------------------- actors


def test_a_bound_class_is_a_new_actor_in_each_execution() -> None:
    node = Counter.bind(10)
    assert isinstance(node, ClassNode)
    graph = node.add.bind(5)
    assert [get(graph.execute()), get(graph.execute())] == [15, 15]
    assert get(node.execute().add.remote(1)) == 11


def test_calls_of_a_bound_class_run_in_the_order_of_binding() -> None:
    with InputNode() as given:
        counter = Counter.bind()
        first, second, last = counter.add.bind(1), counter.add.bind(given), counter.add.bind(100)
    assert get(last.execute(5)) == 106
    assert get(MultiOutputNode([last, second, first]).execute(5)) == [106, 6, 1]


def test_a_bound_class_may_be_an_argument() -> None:
    assert get(Counter.bind(1, Counter.bind(5)).add_to_other.bind(2).execute()) == 7
    ((handle,), _) = get(tell.bind(Counter.bind(3)).execute())
    assert get(handle.add.remote(1)) == 4


def test_methods_of_a_living_actor_are_bound_to_it() -> None:
    counter = Counter.remote(100)
    with InputNode() as given:
        graph = counter.add.bind(add.bind(given))
    assert [get(graph.execute(4)), get(graph.execute(4))] == [105, 110]
    with pytest.raises(TypeError, match="missing a required argument: 'number'"):
        counter.add.bind()


def test_several_returns_of_a_method_are_nodes_each() -> None:
    counter = Counter.remote(7)
    nodes = counter.both.bind(1)
    assert [node.output_idx for node in nodes] == [0, 1] and all(
        node.is_class_method_output for node in nodes
    )
    call = nodes[0].class_method_call
    assert call.is_class_method_call and call.get_method_name() == "both" and call.num_returns == 2
    assert get(MultiOutputNode(list(nodes)).execute()) == [7, 1]
    assert get(add.bind(*nodes).execute()) == 8
    assert get(Counter.bind(7).both.bind(1).execute()) == [7, 1]


def test_a_bound_class_says_what_it_is_not() -> None:
    node = Counter.bind()
    with pytest.raises(AttributeError, match="nope"):
        node.nope.bind()
    with pytest.raises(AttributeError, match=r"use add\.bind"):
        node.add.remote(1)
    with pytest.raises(TypeError, match="not callable"):
        node.add(1)
    with InputNode() as given, pytest.raises(ValueError, match="constructor"):
        Counter.bind([given.x])


def test_an_actors_constructor_takes_what_was_made_of_an_input() -> None:
    with InputNode() as given:
        graph = Counter.bind(add.bind(given, 1)).add.bind(1)
    assert [get(graph.execute(number)) for number in (1, 10)] == [3, 12]


def test_actors_of_an_execution_end_with_their_results(shared_cluster: Any) -> None:
    assert get(Counter.options(name="of a graph").bind(1).add.bind(1).execute()) == 2
    wait_until(lambda: "of a graph" not in ray.util.list_named_actors(), "the actor has ended")


# ---------------------------------------------------------------- graphs as values


def test_several_ends_are_a_list() -> None:
    with InputNode() as given:
        graph = MultiOutputNode((add.bind(given), add.bind(given, 5)))
    assert get(graph.execute(5)) == [6, 10]
    assert MultiOutputNode([]).execute() == [] and MultiOutputNode([1]).execute() == [1]
    with pytest.raises(ValueError, match="list or tuple"):
        MultiOutputNode(add.bind(1))  # type: ignore[arg-type]


def test_graphs_travel() -> None:
    with InputNode() as given:
        graph = cloudpickle.loads(cloudpickle.dumps(Counter.bind(1).add.bind(add.bind(given[0]))))
    assert get(graph.execute([2])) == 4

    @ray.remote
    def run(boxed: Any) -> Any:
        return ray.get(boxed[0].execute([5]))

    assert get(run.remote([graph])) == 7


def test_results_of_all_nodes_can_be_kept() -> None:
    inner = add.bind(1)
    graph = add.bind(inner)
    assert asyncio.run(graph.get_object_refs_from_last_execute()) == {}
    result = graph.execute(_ray_cache_refs=True)
    kept = asyncio.run(graph.get_object_refs_from_last_execute())
    assert kept[graph.get_stable_uuid()] == result and get(kept[inner.get_stable_uuid()]) == 2
    graph.clear_cache()
    assert asyncio.run(graph.get_object_refs_from_last_execute()) == {}


def test_a_graph_is_walked_and_rewritten() -> None:
    inner = add.bind(1)
    graph = add.bind(inner, second=inner)
    seen: list[DAGNode] = []
    graph.traverse_and_apply(seen.append)
    assert seen == [inner, graph]
    assert (
        graph.apply_recursive(
            lambda node: operator.add(node.get_args()[0], node.get_kwargs().get("second", 10))
        )
        == 22
    )
    copy = graph.apply_recursive(lambda node: node)
    assert (
        copy is not graph and copy.get_stable_uuid() == graph.get_stable_uuid() and get(copy.execute()) == 4
    )


def test_nodes_in_a_list_are_replaced_by_choice() -> None:
    first, second = add.bind(1), Counter.bind(1)
    replaced = first.apply_functional(
        [first, {"key": second}, 3], lambda node: node is second, lambda node: "replaced"
    )
    assert replaced == [first, {"key": "replaced"}, 3]


def test_nodes_can_be_made_of_plain_functions_and_classes() -> None:
    class Plain:
        def double(self, number: int) -> int:
            return 2 * number

    node = ClassNode(Plain, (), {}, {"num_cpus": 0})
    assert get(FunctionNode(abs_sum, (node.double.bind(-2), 1), {}, {"num_cpus": 0.5}).execute()) == 5


def test_a_graph_is_drawn(tmp_path: Path) -> None:
    graph = Counter.bind(1).add.bind(add.bind(1))
    plot(graph, str(tmp_path / "graph.dot"))
    text = (tmp_path / "graph.dot").read_text()
    assert text.count("->") == 2 and all(f'label="{name}"' in text for name in ("add", "Counter"))


def test_compiled_graphs_are_refused_in_words() -> None:
    graph = add.bind(1)
    assert isinstance(Counter.bind().add.bind(1), ClassMethodNode)
    for method in (graph.experimental_compile, graph.with_tensor_transport):
        with pytest.raises(NotImplementedError, match="compiled graphs are not part of ray_mono"):
            method()
    with pytest.raises(AttributeError, match="compiled graphs"):
        _ = dag_module.DAGContext


def test_local_mode_runs_graphs_too(start: Any) -> None:
    script = start(
        """
        import ray_mono as ray
        from ray_mono.dag import InputNode

        @ray.remote
        def double(number):
            return 2 * number

        @ray.remote
        class Adder:
            def add(self, first, second):
                return first + second

        ray.init(local_mode=True)
        with InputNode() as given:
            graph = Adder.bind().add.bind(double.bind(given[0]), given.more)
        print(ray.get(graph.execute(20, more=2)))
        """
    )
    assert script.check_ended_well() == "42\n"
