"""What the tool that plants faults makes of a file, and that it leaves the file as it was."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import plant_faults
from tools.plant_faults import Fault

SOURCE = '''"""Of a shop."""

def sell(stock, number, is_open):
    """Sells."""
    if is_open and number <= stock.left:
        stock.left -= number
        stock.add(stock.left)
        tell("grün", number)
    logger.info("sold")
    stock.turn()
    stock.close(number + 1)
    return number < stock.most
'''.encode()


def faults() -> list[Fault]:
    return list(plant_faults.Finder("shop.py", SOURCE).faults())


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("drops", "'stock.left -= number' is 'pass'"),
        ("drops", "'tell(\"grün\", number)' is 'pass'"),
        ("ignores", "'is_open and number <= stock.left' is '((number <= stock.left))'"),
        ("ignores", "'is_open and number <= stock.left' is '((is_open))'"),
        ("off", "'number <= stock.left' is '(number < stock.left)'"),
        ("off", "'number < stock.most' is '(number <= stock.most)'"),
        ("off", "'number + 1' is '(number)'"),
        ("swaps", "'stock.turn() stock.close(number + 1)' is 'stock.close(number + 1) stock.turn()'"),
        (
            "swaps",
            "'stock.left -= number stock.add(stock.left)' is 'stock.add(stock.left) stock.left -= number'",
        ),
    ],
)
def test_a_fault_of_each_kind_is_found_and_can_be_planted(kind: str, told: str) -> None:
    (fault,) = [each for each in faults() if each.kind == kind and each.told(SOURCE).endswith(f": {told}")]
    planted = fault.planted(SOURCE)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(SOURCE))
    assert SOURCE.splitlines()[fault.line - 1] != planted.splitlines()[fault.line - 1]


def test_what_is_for_people_stays_as_it_is() -> None:
    assert not [each for each in faults() if "logger" in each.told(SOURCE) and each.kind == "drops"]


@pytest.mark.parametrize("lines", ["a = b\nc = d\n", "a = b()\nc = a.d()\n", "a.b()\nc.b()\n"])
def test_what_commutes_or_what_any_run_would_find_is_not_swapped(lines: str) -> None:
    faults = plant_faults.Finder("a.py", lines.encode()).faults()
    assert not [each for each in faults if each.kind == "swaps"]


@pytest.mark.parametrize("measure", ["size_bytes < 5", "left_s >= MOST", "a.size > WARN_BYTES"])
def test_one_more_or_less_of_what_is_measured_is_no_fault(measure: str) -> None:
    assert not list(plant_faults.Finder("a.py", f"a = {measure}\n".encode()).faults())


def test_a_draw_is_its_seeds_has_all_kinds_alike_and_no_place_twice() -> None:
    drawn = plant_faults.draw({"shop.py": SOURCE}, 4, 7)
    assert drawn == plant_faults.draw({"shop.py": SOURCE}, 4, 7)
    assert len({each.kind for each in drawn}) == len({each.line for each in drawn}) == len(drawn) == 4
    # No more than there are.
    assert len(plant_faults.draw({"shop.py": SOURCE}, 1000, 7)) < 10


@pytest.mark.parametrize("found_by", ["the near tests", "the others", "nobody"])
def test_the_near_tests_run_first_and_the_file_is_whole_again(tmp_path: Path, found_by: str) -> None:
    (tmp_path / "tests/near").mkdir(parents=True)
    (tmp_path / "src/near").mkdir(parents=True)
    file = tmp_path / "src/near/shop.py"
    file.write_bytes(SOURCE)
    fault = plant_faults.draw({"src/near/shop.py": SOURCE}, 1, 1)[0]
    asked = []

    def find(tests: list[str]) -> bool:
        assert file.read_bytes() == fault.planted(SOURCE)
        asked.append(tests)
        return len(asked) == {"the near tests": 1, "the others": 2, "nobody": 3}[found_by]

    assert plant_faults.try_fault(fault, tmp_path, find, "src", "tests") == (found_by != "nobody")
    assert asked == [["tests/near"], ["tests"]][: 1 if found_by == "the near tests" else 2]
    assert file.read_bytes() == SOURCE
