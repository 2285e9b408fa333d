"""The counter of functions that a call enters."""

from __future__ import annotations

import json

from bench import frames
from ray_mono._private.remote import signature


def test_only_functions_of_ray_mono_are_counted_each_time_in_their_order() -> None:
    def program() -> str:
        signature.flatten((1,), {})
        return json.dumps(signature.flatten((), {"a": 1}))

    walk = frames.Walk(program)
    assert walk.value == json.dumps(signature.flatten((), {"a": 1}))
    assert [function for _, function in walk.frames] == ["flatten", "flatten"]
    assert (walk.num_files, walk.num_moves) == (1, 0)


def test_the_middle_call_is_told() -> None:
    walks = [frames.Walk(lambda n=n: [signature.flatten((), {}) for _ in range(n)]) for n in (5, 1, 3)]
    assert len(frames.median(walks).frames) == 3
