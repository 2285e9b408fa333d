"""Gets: what is answered at once, what waits, what is pulled, and what is lost."""

from __future__ import annotations

import pytest

from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.get_queue import (
    FoundState,
    GetDone,
    GetEffect,
    GetQueue,
    PullUnwanted,
    PullWanted,
    RoomAsked,
    RoomSpared,
    RoomUnneeded,
    Wanted,
)
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.spill_files import SpillFiles
from ray_mono.object_manager.store import Store

ANNA, BERT = ClientKey(1), ClientKey(2)
HERE, FAR, FARTHER = NodeKey(b"here"), NodeKey(b"far"), NodeKey(b"farther")
A, B = ObjectKey(b"a"), ObjectKey(b"b")


class Scene:
    def __init__(self) -> None:
        self.store = Store(1 << 20, SpillFiles(1.0), dead_owners_max=10)
        self.store.allocator.raise_limit(1 << 20)
        for client in (ANNA, BERT, TRANSFERS):
            self.store.connect(client)
        self.queue = GetQueue(self.store, HERE)

    def create(self, object_id: ObjectKey, client: ClientKey = ANNA) -> None:
        self.store.create(object_id, 100, b"meta", WorkerKey(b"o"), client, is_primary=client != TRANSFERS)

    def seal(self, object_id: ObjectKey, client: ClientKey = ANNA, pulled: bool = False) -> list[GetEffect]:
        self.store.seal(object_id, client)
        return self.checked(self.queue.sealed(object_id, pulled))

    def put(self, object_id: ObjectKey) -> list[GetEffect]:
        self.create(object_id)
        return self.seal(object_id)

    def get(
        self, *wanted: Wanted, client: ClientKey = ANNA, timeout_s: float | None = None, now_s: float = 0.0
    ) -> list[GetEffect]:
        """As if there were room for all."""
        _, effects = self.queue.start(client, wanted, timeout_s, now_s)
        return self.admitted(effects)

    def admitted(self, effects: list[GetEffect]) -> list[GetEffect]:
        self.checked(effects)
        result: list[GetEffect] = []
        for effect in effects:
            asked = isinstance(effect, RoomAsked)
            result += self.checked(self.queue.admitted(effect.number)) if asked else [effect]
        return result

    def checked(self, effects: list[GetEffect]) -> list[GetEffect]:
        """What admission is told of Gets that are over is left out."""
        self.store.check_invariants()
        self.queue.check_invariants()
        return [each for each in effects if not isinstance(each, (RoomUnneeded, RoomSpared))]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def states(effects: list[GetEffect]) -> list[str]:
    (done,) = effects
    assert isinstance(done, GetDone) and not done.error
    return [found.state.value for found in done.objects]


def test_what_is_here_is_answered_at_once_and_pinned(scene: Scene) -> None:
    scene.put(A)
    (done,) = scene.get(Wanted(A))
    assert isinstance(done, GetDone)
    (found,) = done.objects
    assert (found.state, found.size_bytes, found.metadata, found.pulled) == (
        FoundState.FOUND,
        100,
        b"meta",
        False,
    )
    assert scene.store.num_pins == 1


def test_what_no_owner_has_placed_yet_is_awaited(scene: Scene) -> None:
    assert scene.get(Wanted(A)) == []
    assert scene.get(Wanted(A), client=BERT) == []
    done = scene.put(A)
    assert [states([effect]) for effect in done] == [["found"], ["found"]]
    assert scene.store.num_pins == 2


def test_a_get_of_many_is_answered_when_the_last_is_here(scene: Scene) -> None:
    scene.put(A)
    assert scene.get(Wanted(B), Wanted(A)) == []
    assert scene.store.num_pins == 1
    assert states(scene.put(B)) == ["found", "found"]


def test_at_its_deadline_a_get_is_answered_with_what_is_here(scene: Scene) -> None:
    scene.put(A)
    scene.get(Wanted(A), Wanted(B, (FAR,)), timeout_s=5, now_s=1)
    assert scene.queue.next_deadline_s == 6
    assert scene.queue.expire(now_s=5.9) == []
    unwanted, done = scene.checked(scene.queue.expire(now_s=6))
    assert unwanted == PullUnwanted(B)
    assert states([done]) == ["found", "not here"]
    assert scene.queue.next_deadline_s is None


def test_with_no_time_to_wait_nothing_is_pulled(scene: Scene) -> None:
    assert states(scene.get(Wanted(A, (FAR,)), Wanted(B), timeout_s=0)) == ["not here", "not here"]
    assert len(scene.queue) == 0


def test_what_others_hold_is_pulled(scene: Scene) -> None:
    assert scene.get(Wanted(A, (HERE, FAR, FARTHER))) == [PullWanted(A, (FAR, FARTHER))]
    scene.create(A, TRANSFERS)
    (done,) = scene.seal(A, TRANSFERS, pulled=True)
    assert isinstance(done, GetDone) and done.objects[0].pulled


def test_what_only_this_node_should_hold_and_does_not_is_lost(scene: Scene) -> None:
    (done,) = scene.get(Wanted(A, (HERE,)))
    assert isinstance(done, GetDone)
    assert done.objects[0].state is FoundState.LOST
    assert f"node {HERE.hex()} holds no copy any more" in done.objects[0].reason


def test_what_is_being_written_here_is_awaited_also_where_only_this_node_is_named(scene: Scene) -> None:
    scene.create(A)
    assert scene.get(Wanted(A, (HERE,))) == []
    assert states(scene.seal(A)) == ["found"]


def test_when_its_writer_gives_up_an_object_is_pulled_or_lost(scene: Scene) -> None:
    scene.create(A)
    scene.get(Wanted(A, (HERE,)))
    scene.get(Wanted(A, (FAR,)), client=BERT)
    scene.get(Wanted(A))
    scene.store.abort(A, ANNA)
    lost, pull = scene.admitted(scene.checked(scene.queue.given_up([A])))
    assert states([lost]) == ["lost"]
    assert pull == PullWanted(A, (FAR,))
    assert len(scene.queue) == 2


def test_what_nobody_gave_is_lost_and_the_rest_is_answered(scene: Scene) -> None:
    scene.put(B)
    scene.get(Wanted(A, (FAR,)), Wanted(B))
    done = scene.checked(scene.queue.lost(A, "no luck"))
    assert states(done) == ["lost", "found"]
    assert isinstance(done[0], GetDone) and done[0].objects[0].reason == "no luck"


def test_a_get_for_whose_objects_there_is_no_room_fails_and_lets_go_of_the_rest(scene: Scene) -> None:
    scene.put(B)
    scene.get(Wanted(A, (FAR,)), Wanted(B))
    unwanted, done = scene.checked(scene.queue.unobtainable(A, "no room"))
    assert unwanted == PullUnwanted(A)
    assert isinstance(done, GetDone) and done.error == "no room"
    assert scene.store.num_pins == 0


def test_copies_of_a_get_that_fails_go_since_their_owners_hear_nothing_of_them(scene: Scene) -> None:
    scene.get(Wanted(A, (FAR,)), Wanted(B, (FAR,)))
    scene.create(A, TRANSFERS)
    scene.seal(A, TRANSFERS, pulled=True)
    scene.checked(scene.queue.unobtainable(B, "no room"))
    assert not scene.store.contains(A)


def test_but_not_where_somebody_reads_them(scene: Scene) -> None:
    scene.get(Wanted(A, (FAR,)), client=BERT)
    scene.get(Wanted(A, (FAR,)), Wanted(B, (FAR,)))
    scene.create(A, TRANSFERS)
    scene.seal(A, TRANSFERS, pulled=True)
    scene.checked(scene.queue.unobtainable(B, "no room"))
    assert scene.store.contains(A) and scene.store.num_pins == 1


def test_who_finds_a_copy_whose_owner_has_yet_to_be_told_tells_it(scene: Scene) -> None:
    scene.get(Wanted(A, (FAR,)), Wanted(B, (FAR,)))
    scene.create(A, TRANSFERS)
    scene.seal(A, TRANSFERS, pulled=True)
    (done,) = scene.get(Wanted(A, (FAR,)), client=BERT)
    assert isinstance(done, GetDone) and done.objects[0].pulled
    scene.checked(scene.queue.unobtainable(B, "no room"))
    assert scene.store.contains(A)
    (done,) = scene.get(Wanted(A, (FAR,)), client=BERT)
    assert isinstance(done, GetDone) and not done.objects[0].pulled


def test_copies_of_a_get_whose_client_is_gone_go_since_their_owners_hear_nothing_of_them(
    scene: Scene,
) -> None:
    scene.get(Wanted(A, (FAR,)), Wanted(B, (FAR,)))
    scene.create(A, TRANSFERS)
    scene.seal(A, TRANSFERS, pulled=True)
    scene.checked(scene.queue.client_gone(ANNA))
    assert not scene.store.contains(A) and scene.store.num_pins == 0


def test_who_may_go_elsewhere_waits_for_room_only_for_a_while(scene: Scene) -> None:
    scene.put(B)
    scene.get(Wanted(A, (FAR,)), now_s=5)
    number, _ = scene.queue.start(BERT, (Wanted(A, (FAR,)), Wanted(B)), None, 5, room_timeout_s=2)
    # What is on its way has all the time that it needs.
    assert scene.queue.next_room_deadline_s(lambda number: None) is None
    assert scene.queue.next_room_deadline_s(lambda number: 1) == 7
    assert scene.checked(scene.queue.give_up_on_room(6.9, lambda number: 1)) == []
    (done,) = scene.checked(scene.queue.give_up_on_room(7, lambda number: 1))
    assert isinstance(done, GetDone) and A.hex() in done.error
    assert scene.store.num_pins == 0
    # The other one waits still.
    assert len(scene.queue) == 1 and scene.queue.next_room_deadline_s(lambda number: 1) is None


def test_a_get_that_is_not_admitted_pins_nothing_and_gives_way_to_nothing(scene: Scene) -> None:
    scene.put(A)
    number, effects = scene.queue.start(ANNA, [Wanted(A), Wanted(B, (FAR,), 70)], None, 0)
    assert effects == [RoomAsked(number, Priority.GET, {A: 0, B: 70})]
    assert scene.store.num_pins == 0
    assert scene.checked(scene.queue.admitted(number)) == [PullWanted(B, (FAR,))]
    assert scene.store.num_pins == 1
    assert scene.checked(scene.queue.gives_way(number)) == [
        PullUnwanted(B, gives_way=True),
        PullUnwanted(A, gives_way=True),
    ]
    assert scene.store.num_pins == 0


def test_a_get_that_is_not_admitted_is_answered_when_all_is_here_by_itself(scene: Scene) -> None:
    scene.put(A)
    scene.queue.start(ANNA, [Wanted(A, (FAR,)), Wanted(B, (FAR,))], None, 0)
    assert states(scene.put(B)) == ["found", "found"]
    assert scene.store.num_pins == 2


def test_a_copy_that_was_let_go_of_and_is_gone_is_pulled_again(scene: Scene) -> None:
    scene.get(Wanted(A, (FAR,)), Wanted(B, (FAR,)))
    scene.create(A, TRANSFERS)
    assert scene.seal(A, TRANSFERS, pulled=True) == []
    scene.checked(scene.queue.gives_way(1))
    scene.store.free(A)
    assert scene.checked(scene.queue.admitted(1)) == [PullWanted(B, (FAR,)), PullWanted(A, (FAR,))]


def test_an_object_that_is_named_twice_is_pinned_twice(scene: Scene) -> None:
    assert scene.get(Wanted(A), Wanted(A)) == []
    assert states(scene.put(A)) == ["found", "found"]
    assert scene.store.num_pins == 2


def test_the_end_of_a_connection_ends_its_gets(scene: Scene) -> None:
    scene.get(Wanted(A, (FAR,)))
    scene.get(Wanted(A), Wanted(B), client=BERT)
    effects = scene.checked(scene.queue.client_gone(BERT))
    assert isinstance(effects[-1], GetDone) and effects[-1].error
    assert PullUnwanted(A) not in effects  # Anna still waits for it
    assert len(scene.queue) == 1


def test_a_cancelled_get_lets_go_of_what_it_had(scene: Scene) -> None:
    scene.put(A)
    number, _ = scene.queue.start(ANNA, [Wanted(A), Wanted(B)], None, 0)
    assert scene.checked(scene.queue.cancel(number)) == [PullUnwanted(B)]
    assert scene.store.num_pins == 0
    assert scene.queue.cancel(number) == []
