"""What is pickled by value keeps the file that it stands in, whatever the library says of that (cloudpickle
3.1.3 says <dynamic-code>)."""

from __future__ import annotations

import pickle
import traceback
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from ray_mono import exceptions
from ray_mono.common import code_pickler
from ray_mono.common.code_pickler import CodePickler
from ray_mono.core_worker.values import serialization  # noqa: F401


@pytest.fixture(autouse=True)
def library_that_forgets_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reducer as in the newest release, under whichever is installed."""

    def forget(code: types.CodeType) -> Any:
        kept, arguments = original(code)
        return kept, tuple("<dynamic-code>" if item == code.co_filename else item for item in arguments)

    original = cloudpickle.CloudPickler.dispatch_table[types.CodeType]
    monkeypatch.setitem(cloudpickle.CloudPickler.dispatch_table.maps[0], types.CodeType, forget)


SOURCE = """
def plain():
    return 1 // 0

nested = lambda: (lambda: [1 // zero for zero in (0,)])()

def closure():
    def inner():
        return plain()
    return inner
inner = closure()

def generator():
    yield 1 // 0

async def coroutine():
    return 1 // 0

class Thing:
    def method(self):
        return plain()
    @staticmethod
    def static():
        return plain()
    @property
    def prop(self):
        return plain()
"""


def program(name: str) -> Any:
    """A program as `__main__` or a notebook's cell is: its functions travel by value."""
    module = types.ModuleType("__main__")
    exec(compile(SOURCE, name, "exec"), vars(module))
    return module


def step(coroutine: Any) -> Any:
    return coroutine.send(None)


CALLS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda f: f(),
    "nested": lambda f: f(),
    "inner": lambda f: f(),
    "generator": lambda f: next(f()),
    "coroutine": lambda f: step(f()),
    "Thing": lambda cls: cls().method(),
    "Thing.static": lambda f: f(),
    "Thing.prop": lambda cls: cls().prop,
}


@pytest.mark.parametrize("file", ["/her/program.py", "<ipython-input-3-0a1b2c>", "/gone/ipykernel_7/1.py"])
@pytest.mark.parametrize("name", list(CALLS))
def test_frames_of_what_was_pickled_by_value_name_file_line_and_function(name: str, file: str) -> None:
    module = program(file)
    target = module.Thing if name == "Thing.prop" else eval(name, vars(module))
    loaded = pickle.loads(code_pickler.dumps(target))
    with pytest.raises(ZeroDivisionError) as raised:
        CALLS[name](loaded)
    with pytest.raises(ZeroDivisionError) as here:
        CALLS[name](target)
    frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(raised.value.__traceback__)[1:]]
    expected = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(here.value.__traceback__)[1:]]
    ours = [frame for frame in frames if frame[0] != __file__]
    assert ours and ours == [frame for frame in expected if frame[0] != __file__]
    assert {frame[0] for frame in ours} == {file}


def test_code_says_the_same_of_itself_after_the_journey() -> None:
    def every_code(code: types.CodeType) -> list[types.CodeType]:
        return [
            code,
            *(c for const in code.co_consts if isinstance(const, types.CodeType) for c in every_code(const)),
        ]

    code = compile(SOURCE, "/her/program.py", "exec")
    loaded = pickle.loads(code_pickler.dumps(code))
    assert loaded == code
    for before, after in zip(every_code(code), every_code(loaded), strict=True):
        assert (after.co_filename, after.co_qualname) == (before.co_filename, before.co_qualname)
        assert list(after.co_positions()) == list(before.co_positions())
        assert after.co_exceptiontable == before.co_exceptiontable


def test_every_process_that_unpickled_a_function_pickles_it_alike() -> None:
    first = code_pickler.dumps(program("/her/program.py").inner)
    second = code_pickler.dumps(pickle.loads(first))
    assert code_pickler.dumps(pickle.loads(second)) == second


def filename_of(function: Any) -> str:
    return function.__code__.co_filename


def test_values_code_errors_and_what_users_pickle_themselves_all_keep_the_file() -> None:
    from ray_mono import cloudpickle as exposed

    module = program("/her/program.py")
    value = serialization.serialize({"f": module.plain})
    assert filename_of(serialization.deserialize(value.metadata, value.to_bytes())["f"]) == "/her/program.py"
    code, _ = serialization.serialize_code(module.plain)
    assert filename_of(pickle.loads(code)) == "/her/program.py"
    error = pickle.loads(pickle.dumps(exceptions.RayTaskError("f", "", ValueError(module.plain))))
    assert filename_of(error.cause.args[0]) == "/her/program.py"
    assert filename_of(exposed.loads(exposed.dumps(module.plain))) == "/her/program.py"


def test_what_is_registered_here_is_not_registered_for_other_users_of_the_library() -> None:
    class Kind:
        pass

    CodePickler.dispatch_table[Kind] = lambda value: (str, ("replaced",))
    try:
        assert pickle.loads(code_pickler.dumps(Kind())) == "replaced"
        assert Kind not in cloudpickle.CloudPickler.dispatch_table
    finally:
        del CodePickler.dispatch_table[Kind]


def test_a_reducer_can_serve_subclasses_unless_they_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kind:
        pass

    class Child(Kind):
        pass

    class Own(Kind):
        pass

    def of_subclass(cls: type) -> Callable[[Any], Any] | None:
        return (lambda value: (str, (type(value).__name__,))) if issubclass(cls, Kind) else None

    monkeypatch.setattr(CodePickler.dispatch_table, "of_subclass", [lambda cls: None, of_subclass])
    monkeypatch.setitem(CodePickler.dispatch_table, Own, lambda value: (str, ("its own",)))
    assert [pickle.loads(code_pickler.dumps(value)) for value in (Child(), Own())] == ["Child", "its own"]
    assert isinstance(pickle.loads(code_pickler.dumps(Exception())), Exception)
