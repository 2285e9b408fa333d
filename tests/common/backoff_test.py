"""Pauses between attempts."""

from ray_mono.common.backoff import Backoff, pause_after_s


def test_pauses_grow_to_their_bound_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(first_s=0.1, max_s=0.5)
    assert [backoff.next_s() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    backoff.reset()
    assert backoff.next_s() == 0.1


def test_who_counts_its_failures_itself_is_told_the_pause_however_many_they_are() -> None:
    assert [pause_after_s(failures, 0.1, 0.5) for failures in range(6)] == [0, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert pause_after_s(100_000, 0.1, 5.0) == 5.0
