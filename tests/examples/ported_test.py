"""Programs written for Ray print under ray_mono.compat what they print with Ray: expected/ was made by Ray
2.60."""

from __future__ import annotations

import pytest

from examples.ported import compare


@pytest.mark.parametrize("name", compare.PROGRAMS)
def test_a_program_written_for_ray_prints_what_it_prints_with_ray(name: str) -> None:
    assert not compare.difference(compare.expected(name), compare.run_under_compat(name), "Ray", "ray_mono")


def test_every_program_and_every_expected_output_is_compared() -> None:
    programs = {path.stem for path in compare.FOLDER.glob("*.py")} - {"compare"}
    recorded = {path.stem for path in (compare.FOLDER / "expected").iterdir()}
    assert programs == recorded == set(compare.PROGRAMS)


@pytest.mark.parametrize("name", compare.PROGRAMS)
def test_a_program_explains_itself_to_the_user_who_asks(name: str) -> None:
    assert f"python {name}.py" in compare.run_under_compat(name, "--help")
