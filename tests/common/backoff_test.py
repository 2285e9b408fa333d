"""Pauses between attempts."""

from ray_mono.common.backoff import Backoff


def test_pauses_grow_to_their_bound_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(first_s=0.1, max_s=0.5)
    assert [backoff.next_s() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    backoff.reset()
    assert backoff.next_s() == 0.1
