"""joblib's backend on a real cluster, with joblib alone and under scikit-learn."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono.util.joblib import register_ray
from tests.integration.conftest import NUM_CPUS
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def backend(leaves_nothing: None) -> Iterator[None]:
    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=-1):
        yield


def test_calls_run_in_processes_of_the_cluster_in_order() -> None:
    values = joblib.Parallel()(joblib.delayed(lambda number: (number, os.getpid()))(n) for n in range(50))
    assert [number for number, _ in values] == list(range(50))
    assert os.getpid() not in {process for _, process in values}


def test_processes_meet_and_are_kept_for_the_next_call(tmp_path: Path) -> None:
    def meet(place: str) -> int:
        Path(place, str(os.getpid())).touch()
        wait_until(lambda: len(os.listdir(place)) == NUM_CPUS, "all processes at work at once")
        return os.getpid()

    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = joblib.Parallel()(joblib.delayed(meet)(str(tmp_path / "first")) for _ in range(NUM_CPUS))
    second = joblib.Parallel()(joblib.delayed(meet)(str(tmp_path / "second")) for _ in range(NUM_CPUS))
    assert len(set(first)) == NUM_CPUS and set(first) == set(second)


def test_an_error_is_raised_as_it_was_and_the_backend_goes_on() -> None:
    with joblib.Parallel() as parallel:
        with pytest.raises(ZeroDivisionError):
            parallel(joblib.delayed(divmod)(1, number) for number in (1, 0, 1))
        assert parallel(joblib.delayed(divmod)(1, number) for number in (1, 1)) == [(1, 0)] * 2


def test_results_may_be_read_as_they_come() -> None:
    results = joblib.Parallel(return_as="generator")(joblib.delayed(abs)(-number) for number in range(10))
    assert list(results) == list(range(10))


def test_large_arrays_are_put_once_and_read_without_a_copy() -> None:
    array = np.arange(100_000)

    def look(values: np.ndarray, *, again: np.ndarray) -> tuple[int, bool, int]:
        return (
            int(values.sum() + again.sum()),
            values.flags.writeable,
            internal_state.store_stats().num_objects,
        )

    told = joblib.Parallel()(joblib.delayed(look)(array, again=array) for _ in range(10))
    assert {(total, is_writeable) for total, is_writeable, _ in told} == {(2 * int(array.sum()), False)}
    assert {objects for _, _, objects in told} == {1}


def test_references_of_the_program_are_left_alone() -> None:
    ref = ray.put(3)
    assert joblib.Parallel()(joblib.delayed(ray.get)(boxed) for boxed in ([ref], [ref])) == [[3], [3]]


def test_nested_calls_run_inside_their_process() -> None:
    def outer(number: int) -> list[Any]:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(lambda n: (n, os.getpid()))(n) for n in range(number))

    for inner in joblib.Parallel()(joblib.delayed(outer)(2) for _ in range(2)):
        assert [number for number, _ in inner] == [0, 1] and len({process for _, process in inner}) == 1


def test_the_number_of_jobs_is_bounded_by_the_cluster() -> None:
    for asked, given in ((-1, NUM_CPUS), (1000, NUM_CPUS), (-NUM_CPUS, 1), (None, 1)):
        assert joblib.parallel.get_active_backend()[0].effective_n_jobs(asked) == given
    with pytest.raises(ValueError, match="n_jobs"):
        joblib.Parallel(n_jobs=0)(joblib.delayed(abs)(n) for n in range(2))
    here = joblib.Parallel(n_jobs=1)(joblib.delayed(os.getpid)() for _ in range(2))
    assert here == [os.getpid()] * 2


def test_processes_take_options() -> None:
    def held() -> dict[str, float]:
        return ray.get_runtime_context().get_assigned_resources()

    with joblib.parallel_config(backend="ray", n_jobs=-1, ray_remote_args={"num_cpus": 0.5}):
        assert joblib.Parallel()(joblib.delayed(held)() for _ in range(2)) == [{"CPU": 0.5}] * 2


def test_without_joblib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib.parallel", None)
    with pytest.raises(ImportError, match="pip install joblib"):
        register_ray()


def test_a_grid_search_of_scikit_learn_finds_what_it_finds_alone() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    data, target = load_digits(return_X_y=True)
    grid = {"C": [0.1, 10.0], "gamma": [1e-3, 1e-2]}

    def search(**how: Any) -> Any:
        return GridSearchCV(SVC(), grid, cv=3, **how).fit(data[:600], target[:600])

    ours, alone = search(), search(n_jobs=1)
    assert ours.best_params_ == alone.best_params_
    assert np.allclose(ours.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
