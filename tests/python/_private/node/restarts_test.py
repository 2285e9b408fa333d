"""When a service that ended begins again."""

from __future__ import annotations

from ray_mono._private.node.restarts import ENDS_MAX, LIVED_S, PAUSE_MAX_S, Restarts

GCS_RECONNECT_TIMEOUT_S = 60.0


def pauses_of(restarts: Restarts, was_killed: bool = False) -> list[float]:
    """Of a service that ends as soon as it begins, until it does not begin any more."""
    now_s = 100.0
    pauses = []
    while (at_s := restarts.ended(now_s, now_s, was_killed)) is not None:
        pauses.append(at_s - now_s)
        now_s = at_s
    return pauses


def test_it_begins_again_at_once_and_then_later_each_time_until_it_has_had_its_chances() -> None:
    restarts = Restarts()
    pauses = pauses_of(restarts)
    assert pauses[0] == 0.0 and pauses == sorted(pauses) and pauses[-1] <= PAUSE_MAX_S
    assert len(pauses) == ENDS_MAX - 1 and restarts.num_in_a_row == ENDS_MAX
    # Raylets still wait for it at its last chance.
    assert sum(pauses) < GCS_RECONNECT_TIMEOUT_S


def test_one_that_lived_for_a_while_has_all_its_chances_again() -> None:
    restarts = Restarts()
    for _ in range(5 * ENDS_MAX):
        assert restarts.ended(0.0, LIVED_S, False) == LIVED_S
    assert restarts.ended(0.0, LIVED_S - 1, False) > LIVED_S - 1  # type: ignore[operator]


def test_one_that_is_killed_has_many_more_chances_and_begins_at_once_for_long() -> None:
    pauses = pauses_of(Restarts(), was_killed=True)
    assert pauses[:9] == [0.0] * 9 and len(pauses) > 5 * ENDS_MAX
    assert max(pauses) <= PAUSE_MAX_S
