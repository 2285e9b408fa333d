"""Leases in placement groups: who may use a bundle, what ends with it, and what is told to those who wait."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE, asked_for_in, given_by
from ray_mono.common.scheduling.labels import IN, LabelRequirement, LabelSelector
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.raylet.effects import EndMode, RejectionKind
from tests.raylet.scheduling.lease_scene import JOB_A, JOB_B, THERE, Scene, units

G, H = b"g" * 18, b"h" * 18
GONE = RejectionKind.PLACEMENT_GROUP_REMOVED


ON_MARS = ((LabelRequirement("zone", IN, ("mars",)),),)


def in_group(
    index: int = ANY_BUNDLE, group: bytes = G, selectors: tuple[LabelSelector, ...] = ()
) -> Strategy:
    return Strategy(StrategyKind.PLACEMENT_GROUP, group_id=group, bundle_index=index, selectors=selectors)


def ask(
    scene: Scene,
    name: str,
    needs: ResourceSet,
    index: int = ANY_BUNDLE,
    group: bytes = G,
    job: bytes = JOB_A,
    for_actor: bool = False,
    grant_or_reject: bool = False,
    selectors: tuple[LabelSelector, ...] = (),
) -> None:
    scene.ask(
        name,
        job=job,
        strategy=in_group(index, group, selectors),
        resources=asked_for_in(needs, group, index),
        for_actor=for_actor,
        grant_or_reject=grant_or_reject,
    )


def prepare(scene: Scene, *bundles: ResourceSet, group: bytes = G, first: int = 0) -> str:
    refusal, effects = scene.manager.prepare_bundles(group, dict(enumerate(bundles, first)), scene.now_s)
    scene.take(effects)
    return refusal


def commit(scene: Scene, *indices: int, group: bytes = G) -> None:
    scene.do(lambda now_s: scene.manager.commit_bundles([(group, each) for each in indices], now_s))


def give_back(scene: Scene, *indices: int, group: bytes = G, is_removed: bool = False) -> None:
    scene.do(lambda now_s: scene.manager.return_bundles({group: indices}, is_removed, now_s))


def with_bundles(*bundles: ResourceSet, total: ResourceSet | None = None) -> Scene:
    scene = Scene(total or units(CPU=4))
    assert prepare(scene, *bundles) == ""
    commit(scene, *range(len(bundles)))
    return scene


# ---- who may use it


def test_what_waits_for_a_bundle_begins_when_it_is_committed() -> None:
    scene = Scene(units(CPU=4))
    ask(scene, "in it", units(CPU=1), 0)
    ask(scene, "in any", units(CPU=1))
    assert prepare(scene, units(CPU=2)) == ""
    assert scene.running == []
    commit(scene, 0)
    assert scene.running == ["in any", "in it"]


def test_a_bundle_is_for_its_group_and_the_rest_of_the_node_for_others() -> None:
    scene = with_bundles(units(CPU=3))
    scene.ask("outside")
    scene.ask("waits")
    ask(scene, "in it", units(CPU=3))
    ask(scene, "one too many", units(CPU=1), 0)
    assert scene.running == ["in it", "outside"]
    scene.give_back("in it")
    assert scene.running == ["one too many", "outside"]


def test_what_cannot_be_held_is_refused_and_nobody_waits_longer() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("running")
    refusal = prepare(scene, units(CPU=1), units(CPU=1))
    assert refusal == "it needs {CPU: 2}, node 62626262 has {CPU: 1} free"
    scene.ask("next")
    assert scene.running == ["next", "running"]


def test_a_node_that_is_drained_holds_no_bundle() -> None:
    scene = Scene(units(CPU=2))
    scene.do(scene.manager.drain)
    assert prepare(scene, units(CPU=1)) == "node 62626262 is drained"


def test_work_goes_to_the_node_that_has_its_bundle() -> None:
    scene = with_bundles(units(CPU=1))
    there = given_by(units(CPU=1), G, 1) + units(CPU=9)
    scene.other_node(there)
    ask(scene, "there", units(CPU=1), 1)
    ask(scene, "here", units(CPU=1), 0)
    assert scene.spilled == {"there": THERE} and scene.running == ["here"]


def test_accelerators_in_a_bundle_are_told_by_their_own_name() -> None:
    scene = with_bundles(units(GPU=1), total=units(CPU=1, GPU=2))
    ask(scene, "1", units(GPU=0.5), 0)
    ask(scene, "2", units(GPU=0.5))
    assert [scene.granted[name].instances for name in ("1", "2")] == [{"GPU": (0,)}] * 2
    assert scene.pool.get(scene.granted["1"].worker_id).binding.has_gpus  # type: ignore[union-attr]


def test_a_share_of_more_than_one_accelerator_is_refused_in_a_group_too() -> None:
    scene = with_bundles(units(GPU=2), total=units(GPU=2))
    ask(scene, "odd", units(GPU=1.5))
    assert scene.rejected == {"odd": RejectionKind.INFEASIBLE}
    assert scene.messages["odd"] == "odd: GPU above 1 has to be a whole number, got 1.5"


def test_what_blocks_in_a_group_lends_its_cpus_within_it() -> None:
    scene = with_bundles(units(CPU=1), total=units(CPU=1))
    ask(scene, "parent", units(CPU=1), 0)
    ask(scene, "child", units(CPU=1))
    scene.ask("outside")
    assert scene.running == ["parent"]
    scene.block("parent")
    assert scene.running == ["child", "parent"]
    scene.block("parent", False)
    scene.give_back("child")
    assert scene.running == ["parent"]


def test_the_snapshot_of_the_node_has_what_its_bundles_give() -> None:
    scene = with_bundles(units(CPU=1))
    ask(scene, "too much", units(CPU=2))
    assert scene.manager.queued_demand() == [(asked_for_in(units(CPU=2), G, ANY_BUNDLE), 1)]
    prepare(scene, units(CPU=2), first=1)
    commit(scene, 1)
    assert scene.running == ["too much"]
    assert scene.ledger.total == units(CPU=4) + given_by(units(CPU=1), G, 0) + given_by(units(CPU=2), G, 1)


def test_work_in_any_bundle_has_all_that_it_needs_in_one() -> None:
    scene = with_bundles(units(CPU=2), units(CPU=2))
    ask(scene, "first", units(CPU=1), 0)
    ask(scene, "second", units(CPU=1), 1)
    ask(scene, "large", units(CPU=2))
    assert scene.running == ["first", "second"]
    ask(scene, "also first", units(CPU=1), 0)
    assert scene.running == ["also first", "first", "second"]
    scene.give_back("second")
    assert scene.running == ["also first", "first", "large"]
    ask(scene, "also second", units(CPU=1), 1)
    scene.give_back("first")
    assert scene.running == ["also first", "large"]
    scene.give_back("large")
    assert scene.running == ["also first", "also second"]


def test_work_in_any_bundle_leaves_room_for_what_needs_more() -> None:
    scene = with_bundles(units(CPU=1, GPU=1), units(CPU=2), units(CPU=1), total=units(CPU=4, GPU=1))
    for name, needs in (("small", units(CPU=1)), ("of a gpu", units(CPU=1, GPU=1)), ("large", units(CPU=2))):
        ask(scene, name, needs)
    assert scene.running == ["large", "of a gpu", "small"]


def test_work_in_any_bundle_does_not_go_to_a_node_that_has_parts_of_it_in_two() -> None:
    scene = with_bundles(units(CPU=1), units(CPU=1))
    scene.other_node(given_by(units(CPU=1), G, 2) + given_by(units(CPU=1), G, 3) + units(CPU=9))
    ask(scene, "large", units(CPU=2))
    assert not scene.spilled and not scene.running


@pytest.mark.parametrize("num_bundles", [2, 3])
def test_large_work_in_any_bundle_is_not_overtaken_by_small_work_without_end(num_bundles: int) -> None:
    scene = with_bundles(*[units(CPU=2)] * num_bundles, total=units(CPU=2 * num_bundles))
    number = 0
    for number in range(4 * num_bundles):
        ask(scene, f"small {number}", units(CPU=1))
    ask(scene, "large", units(CPU=2))
    for turn in range(400):
        if "large" in scene.running:
            return
        scene.wait(0.05)
        # Those that run end one after the other, and each is followed by another one.
        name = scene.running[turn % len(scene.running)]
        scene.give_back(name)
        number += 1
        ask(scene, f"small {number}", units(CPU=1))
    raise AssertionError("it never ran")


# ---- what ends with it


def test_what_runs_in_a_bundle_is_killed_when_it_is_returned_and_nothing_else() -> None:
    scene = with_bundles(units(CPU=1), units(CPU=1))
    for name, index in (("in 0", 0), ("in 1", 1)):
        ask(scene, name, units(CPU=0.5), index)
    ask(scene, "in any", units(CPU=0.5), for_actor=True)
    scene.ask("outside")
    give_back(scene, 0)
    assert [(end.mode, end.reason) for end in scene.ended] == [
        (EndMode.KILL, "its bundle was taken back")
    ] * 2
    killed = {end.worker_id for end in scene.ended}
    assert killed == {scene.granted["in 0"].worker_id, scene.granted["in any"].worker_id}
    assert scene.ledger.available.get("CPU") == 10_000
    scene.worker_dies("in 0")
    scene.worker_dies("in any")
    assert scene.ledger.available.get("CPU") == 20_000 and scene.running == ["in 1", "outside"]


def test_what_waits_for_the_node_begins_when_the_last_worker_of_a_bundle_has_ended() -> None:
    scene = with_bundles(units(CPU=4))
    for name in ("1", "2"):
        ask(scene, name, units(CPU=1), 0)
    scene.ask("outside")
    give_back(scene, 0, is_removed=True)
    assert scene.ended[0].reason == "its placement group was removed"
    scene.worker_dies("1")
    assert scene.running == ["2"]
    scene.worker_dies("2")
    assert scene.running == ["outside"]


def test_what_waits_for_a_group_that_is_removed_is_refused() -> None:
    scene = with_bundles(units(CPU=1))
    scene.hold_starts = True
    ask(scene, "reserved", units(CPU=1), 0)
    ask(scene, "queued", units(CPU=1), 0)
    ask(scene, "other group", units(CPU=1), group=H)
    give_back(scene, 0, is_removed=True)
    assert scene.rejected == {"reserved": GONE, "queued": GONE}
    assert scene.messages["queued"] == f"placement group {G.hex()} was removed"
    assert scene.ledger.available == scene.ledger.total == units(CPU=4)


def test_what_waits_for_a_group_that_lost_a_bundle_waits_on_and_who_had_its_resources_asks_again() -> None:
    scene = with_bundles(units(CPU=1))
    scene.hold_starts = True
    ask(scene, "reserved", units(CPU=1), 0)
    ask(scene, "queued", units(CPU=1), 0)
    give_back(scene, 0)
    assert scene.rejected == {"reserved": RejectionKind.NOT_HERE}
    assert scene.manager.groups_waited_for() == [G]
    assert scene.ledger.available == scene.ledger.total == units(CPU=4)


def test_a_prepared_bundle_that_is_returned_ends_nothing() -> None:
    scene = with_bundles(units(CPU=1))
    ask(scene, "in any", units(CPU=1))
    scene.ask("outside", resources=units(CPU=3))
    scene.give_back("outside")
    prepare(scene, units(CPU=3), first=1)
    scene.ask("waits", resources=units(CPU=3))
    give_back(scene, 1)
    assert scene.ended == [] and scene.running == ["in any", "waits"]


def test_to_return_twice_or_what_is_not_held_changes_nothing() -> None:
    scene = with_bundles(units(CPU=1))
    ask(scene, "1", units(CPU=1))
    give_back(scene, 0, 5)
    give_back(scene, 0, 5)
    give_back(scene, 0, group=H)
    assert len(scene.ended) == 1
    scene.worker_dies("1")
    assert scene.ledger.available == units(CPU=4)


def test_a_lease_that_is_returned_late_ends_with_its_worker() -> None:
    scene = with_bundles(units(CPU=4))
    ask(scene, "1", units(CPU=1))
    give_back(scene, 0)
    scene.give_back("1")
    assert scene.ledger.available.get("CPU") == 0
    scene.worker_dies("1")
    assert scene.ledger.available == units(CPU=4)


def test_a_group_that_the_gcs_does_not_know_refuses_what_waits_for_it() -> None:
    scene = Scene(units(CPU=1))
    ask(scene, "1", units(CPU=1))
    ask(scene, "2", units(CPU=1), group=H)
    assert scene.manager.groups_waited_for() == [G, H]
    scene.do(lambda now_s: scene.manager.groups_ended([G], now_s))
    assert scene.rejected == {"1": GONE} and scene.manager.groups_waited_for() == [H]


# ---- what is told


def test_why_it_waits_for_a_group_is_told_in_plain_names() -> None:
    scene = Scene(units(CPU=4))
    ask(scene, "f", units(CPU=1))
    where = f"placement group {G.hex()[:8]}…"
    assert scene.why("f") == f"f needs {{CPU: 1}} in {where}, which is not placed yet"
    prepare(scene, units(CPU=2))
    commit(scene, 0)
    ask(scene, "g", units(CPU=3))
    assert scene.why("g") == f"g needs {{CPU: 3}} in {where}, which has no bundle with so much"
    ask(scene, "h", units(CPU=3), 0)
    assert scene.why("h") == f"h needs {{CPU: 3}} in bundle 0 of {where}, which has not so much"
    ask(scene, "i", units(CPU=2), 0)
    assert scene.why("i") == f"i needs {{CPU: 2}} in bundle 0 of {where}, which is in use there"
    ask(scene, "k", units(CPU=1), selectors=ON_MARS)
    assert scene.why("k").endswith(f"{where} on a node with zone = mars, where that is not placed")
    ask(scene, "m", units(), group=H)
    assert scene.why("m").startswith("m needs a place in placement group")
    scene.ask("outside", resources=units(CPU=3))
    assert scene.why("outside") == "needs {CPU: 3}; node 62626262 has {CPU: 2} free of {CPU: 4}"
    ask(scene, "j", units(CPU=3), grant_or_reject=True)
    assert scene.messages["j"] == f"it needs {{CPU: 3}} in {where}, and node 62626262 has not that free there"


def test_what_fits_no_bundle_is_told_soon_and_a_group_without_a_place_late() -> None:
    scene = with_bundles(units(CPU=1))
    ask(scene, "f", units(CPU=2))
    ask(scene, "g", units(CPU=1), group=H)
    scene.wait(2.5)
    [warning] = scene.warnings
    assert "f needs {CPU: 2} in placement group" in warning.message and "so much" in warning.message
    scene.wait(28)
    assert "g needs {CPU: 1} in placement group" in scene.warnings[1].message
    assert scene.warnings[1].message.endswith("which is not placed yet")


def test_what_waits_for_actors_that_live_in_its_group_is_told() -> None:
    scene = with_bundles(units(CPU=1))
    ask(scene, "actor", units(CPU=1), for_actor=True)
    ask(scene, "f", units(CPU=1))
    scene.wait(31)
    [warning] = scene.warnings
    assert "{CPU: 1} in placement group" in warning.message and "living actors hold it" in warning.message


def test_bundles_are_described_while_they_end() -> None:
    scene = with_bundles(units(CPU=1))
    ask(scene, "1", units(CPU=1))
    give_back(scene, 0)
    [bundle] = scene.manager.describe(scene.now_s)["bundles"]
    assert (bundle["state"], bundle["waits_for"]) == ("ending", [b"1".hex()])


# ---- any sequence of events

STEPS = [
    "prepare",
    "commit",
    "give back",
    "remove",
    "ask",
    "ask",
    "return",
    "block",
    "unblock",
    "die",
    "wait",
]
NEEDS = [units(), units(CPU=1), units(CPU=2), units(GPU=0.5), units(GPU=1)]
BUNDLES = [units(CPU=1), units(CPU=2), units(GPU=1, CPU=1), units(GPU=0.5)]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(STEPS),
            st.integers(0, 30),
            st.sampled_from([G, H, b""]),
            st.integers(-1, 1),
            st.sampled_from(NEEDS),
        ),
        max_size=60,
    )
)
def test_nothing_waits_that_could_be_placed_whatever_happens_to_groups(
    steps: list[tuple[str, int, bytes, int, ResourceSet]],
) -> None:
    scene = Scene(units(CPU=4, GPU=2))
    for version, (step, number, group, index, needs) in enumerate(steps):
        running, bundle = scene.running, max(index, 0)
        name = running[number % len(running)] if running else ""
        if step == "ask":
            job = JOB_B if number % 3 == 0 else JOB_A
            if group:
                ask(scene, f"task {version}", needs, index, group, job, number % 5 == 0)
            else:
                scene.ask(f"task {version}", job=job, resources=needs)
        elif step == "prepare" and group:
            prepare(scene, BUNDLES[number % len(BUNDLES)], group=group, first=bundle)
        elif step == "commit":
            commit(scene, bundle, group=group)
        elif step in ("give back", "remove") and group:
            give_back(scene, bundle, group=group, is_removed=step == "remove")
        elif step == "wait":
            scene.hold_starts = number % 2 == 0
            scene.wait(0.02 * number)
        elif name and step == "return":
            scene.give_back(name)
        elif name and step in ("block", "unblock"):
            scene.block(name, step == "block")
        elif name and step == "die":
            scene.worker_dies(name)
    scene.hold_starts = False
    for group in (G, H):
        give_back(scene, 0, 1, group=group, is_removed=True)
    while scene.running:
        scene.worker_dies(scene.running[0])
    assert scene.ledger.available == scene.ledger.total == units(CPU=4, GPU=2)
