"""The lease manager under any sequence of events: its books add up, and nothing waits that could be placed.

Not every event ends in a scheduling pass, so this is what shows a pass that is missing.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from tests.raylet.scheduling.lease_scene import JOB_A, JOB_B, THERE, Scene, units

NEEDS = [units(CPU=1), units(CPU=2), units(CPU=3), units(CPU=1, GPU=0.5), units(GPU=2), units(A=1), units()]
STRATEGIES = [
    Strategy(),
    Strategy(StrategyKind.SPREAD),
    Strategy(StrategyKind.NODE_AFFINITY, THERE),
    Strategy(StrategyKind.NODE_AFFINITY, THERE, is_soft=True),
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "ask", "cancel", "give back", "block", "unblock", "die", "wait", "report", "leave"]
        ),
        st.integers(0, 30),
        st.sampled_from(NEEDS),
        st.sampled_from([*[Strategy()] * 3, *STRATEGIES]),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(STEPS)
def test_nothing_waits_that_could_be_placed_whatever_happens(
    steps: list[tuple[str, int, object, Strategy]],
) -> None:
    scene = Scene(units(CPU=3, GPU=2))
    names: list[str] = []
    for version, (step, number, needs, strategy) in enumerate(steps, 1):
        running = scene.running
        if step == "ask":
            names.append(f"task {version}")
            job = JOB_B if number % 3 == 0 else JOB_A
            scene.ask(names[-1], number % 4, job, strategy, resources=needs)
        elif step == "cancel" and names:
            lease_id = names[number % len(names)].encode()
            scene.do(lambda now_s, lease_id=lease_id: scene.manager.cancel(lease_id, now_s))
        elif step == "wait":
            scene.wait(0.05 * number)
        elif step == "report":
            scene.other_node(units(CPU=number % 3), version, total=units(CPU=2))
        elif step == "leave":
            scene.do(lambda now_s, number=number: scene.manager.requester_gone(number % 4, now_s))
        elif running:
            name = running[number % len(running)]
            match step:
                case "give back":
                    scene.give_back(name)
                case "block" | "unblock":
                    scene.block(name, step == "block")
                case "die":
                    scene.worker_dies(name)
