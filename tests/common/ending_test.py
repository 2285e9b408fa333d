"""An end is carried through."""

from __future__ import annotations

from ray_mono.common.ending import run_steps


def test_every_step_is_done_and_a_ctrl_c_is_handed_on() -> None:
    done = []

    def interrupted() -> None:
        done.append("interrupted")
        raise KeyboardInterrupt

    def failing() -> None:
        done.append("failing")
        raise ValueError

    assert isinstance(
        run_steps([interrupted, failing, lambda: done.append("last")], "the end"), KeyboardInterrupt
    )
    assert done == ["interrupted", "failing", "last"]
    assert run_steps([failing], "the end") is None
