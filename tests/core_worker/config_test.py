"""What the environment says of a core worker's limits."""

from __future__ import annotations

import math

import pytest

from ray_mono.core_worker.config import LINEAGE_VARIABLE, WAIT_WARNING_VARIABLE, CoreWorkerConfig, config_of


def test_without_a_word_from_the_environment_the_limits_are_the_products() -> None:
    assert config_of({}) == config_of({LINEAGE_VARIABLE: ""}) == CoreWorkerConfig()


def test_the_bound_of_kept_tasks_can_be_set() -> None:
    assert config_of({LINEAGE_VARIABLE: "5000"}).max_lineage_bytes == 5000


@pytest.mark.parametrize("given", ["1e9", "-1", "1 GiB", "x", "١"])
def test_a_bound_that_is_no_number_is_refused_by_its_name(given: str) -> None:
    with pytest.raises(ValueError, match="RAY_MONO_MAX_LINEAGE_BYTES must be a number of bytes.* it is"):
        config_of({LINEAGE_VARIABLE: given})


def test_how_long_a_wait_lasts_before_a_person_is_told_why_can_be_set() -> None:
    assert config_of({WAIT_WARNING_VARIABLE: "2.5"}).wait_warning_s == 2.5
    assert config_of({WAIT_WARNING_VARIABLE: "0"}).wait_warning_s == math.inf


@pytest.mark.parametrize("given", ["-1", "soon", "nan"])
def test_a_time_that_is_none_is_refused_by_its_name(given: str) -> None:
    with pytest.raises(ValueError, match="RAY_MONO_WAIT_WARNING_S must be a number of seconds.* it is"):
        config_of({WAIT_WARNING_VARIABLE: given})
