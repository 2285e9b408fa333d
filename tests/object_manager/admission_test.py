"""Who may have copies made: whole Gets, the most urgent first, and no more than there is memory for."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ray_mono.object_manager.admission import Admission, Admit, GiveWay, NeverAdmitted, Priority
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.spill_files import SpillFiles
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import Allocated, StoredObject

GET, WAIT, TASK_ARGUMENTS = Priority
A, B, C, D = (ObjectKey(name) for name in (b"a", b"b", b"c", b"d"))
CAPACITY_BYTES = 640
CLIENT = ClientKey(1)


class Scene:
    """A store, and Gets that hold in it what they are admitted for."""

    def __init__(self, overtaken_max_s: float = 15.0, disk_after_s: float | None = None) -> None:
        self.files = SpillFiles(1.0)
        self.store = Store(CAPACITY_BYTES, self.files, dead_owners_max=10)
        self.store.allocator.raise_limit(CAPACITY_BYTES)
        self.store.connect(CLIENT)
        self.admission = Admission(self.store, 60, overtaken_max_s, disk_after_s)
        self.now_s = 0.0
        self.holding: list[int] = []

    def submit(self, number: int, priority: Priority = GET, **sizes: int) -> None:
        named = {ObjectKey(name.encode()): size for name, size in sizes.items()}
        self.admission.submit(number, priority, named, self.now_s)

    def settle(self) -> list[int]:
        """Takes all steps, and returns who is admitted."""
        while (
            effect := self.admission.step(self.store.obtainable_bytes, self.store.releases, self.now_s)
        ) is not None:
            self.follow(effect)
            self.admission.check_invariants()
        return sorted(self.holding)

    def follow(self, effect: Admit | GiveWay | None) -> None:
        if isinstance(effect, Admit):
            self.holding.append(effect.number)
        elif isinstance(effect, GiveWay):
            self.holding.remove(effect.number)

    def place(self, object_id: ObjectKey, size_bytes: int) -> bool:
        """A copy begins to arrive. False where there is no room for it."""
        if self.admission.is_for_disk(object_id):
            extent = self.files.plan(0, [(object_id, size_bytes)])[object_id]
            row = StoredObject(object_id, 0, size_bytes, b"", WorkerKey(b"o"), TRANSFERS, is_primary=False)
            row.unplaced()
            row.written_to_disk()
            self.store.create_on_disk(row, extent)
            self.admission.settled(object_id, size_bytes)
            return True
        room = self.store.create(object_id, size_bytes, b"", WorkerKey(b"o"), TRANSFERS, is_primary=False)
        if not isinstance(room, Allocated):
            return False
        self.admission.settled(object_id, size_bytes)
        return True

    def take(self, size_bytes: int) -> None:
        """By a process of this node, for good."""
        self.store.create(ObjectKey(b"own"), size_bytes, b"", WorkerKey(b"o"), CLIENT, is_primary=True)


def test_a_request_is_admitted_whole_or_not_at_all() -> None:
    scene = Scene()
    scene.submit(1, a=320, b=320)
    scene.submit(2, c=64, d=320)
    assert scene.settle() == [1]
    scene.place(A, 320)
    scene.place(B, 320)
    assert scene.settle() == [1]
    for object_id in (A, B):
        scene.store.abort(object_id, TRANSFERS)
    scene.admission.withdraw(1)
    scene.holding.remove(1)
    assert scene.settle() == [2]


def test_gets_come_before_waits_and_waits_before_arguments_and_nothing_passes_what_is_too_large() -> None:
    scene = Scene()
    scene.take(600)
    for number, priority in enumerate((TASK_ARGUMENTS, WAIT, GET, GET)):
        scene.submit(number, priority, **{f"x{number}": 320 if number == 3 else 128})
    assert scene.settle() == []
    scene.store.abort(ObjectKey(b"own"), CLIENT)
    assert scene.settle() == [1, 2, 3]


def test_a_get_makes_what_is_less_urgent_give_way_the_last_first_and_only_if_that_helps() -> None:
    scene = Scene()
    scene.submit(1, TASK_ARGUMENTS, a=192)
    scene.submit(2, WAIT, b=192)
    scene.submit(3, TASK_ARGUMENTS, c=192)
    assert scene.settle() == [1, 2, 3]
    scene.submit(4, GET, d=192)
    assert scene.settle() == [1, 2, 4]
    scene.submit(5, GET, e=640)
    assert scene.settle() == [1, 2, 4]  # another get has its share


def test_an_object_that_several_want_is_promised_once() -> None:
    scene = Scene()
    scene.submit(1, a=640)
    scene.submit(2, a=640)
    assert scene.settle() == [1, 2]
    scene.admission.withdraw(1)
    scene.place(A, 640)
    scene.admission.check_invariants()


def test_a_copy_that_is_here_and_may_be_evicted_counts_until_it_is_pinned() -> None:
    scene = Scene()
    scene.place(A, 384)
    scene.store.seal(A, TRANSFERS)
    scene.submit(1, a=384, b=384)
    assert scene.settle() == []
    scene.submit(2, a=384)
    assert scene.settle() == []  # behind the first
    scene.admission.withdraw(1)
    assert scene.settle() == [2]


def test_when_a_create_takes_promised_memory_the_last_gives_way() -> None:
    scene = Scene()
    scene.submit(1, a=192)
    scene.submit(2, b=192)
    assert scene.settle() == [1, 2]
    scene.take(320)
    assert scene.settle() == [1]


def test_what_is_refused_a_place_is_alone_at_last_and_lets_go_and_waits_for_memory_to_come_free() -> None:
    scene = Scene()
    scene.submit(1, a=0)
    scene.submit(2, b=64)
    assert scene.settle() == [1, 2]
    scene.follow(scene.admission.refused(A, 320))
    assert scene.settle() == [1]
    # Once more with all that it has left.
    scene.follow(scene.admission.refused(A, 320))
    assert scene.settle() == [1, 2]
    for _ in range(2):
        scene.follow(scene.admission.refused(A, 320))
    assert scene.settle() == [] and scene.admission.is_short
    scene.place(C, 64)
    scene.store.abort(C, TRANSFERS)
    assert scene.settle() == [1, 2]


def test_who_was_overtaken_for_long_is_in_the_first_class() -> None:
    scene = Scene(overtaken_max_s=15)
    scene.take(640)
    scene.submit(1, TASK_ARGUMENTS, a=640)
    scene.submit(2, GET, b=640)
    scene.settle()
    scene.now_s = 15
    scene.submit(3, GET, c=640)
    scene.store.abort(ObjectKey(b"own"), CLIENT)
    assert scene.settle() == [1]


def test_who_has_no_room_in_time_fails_with_the_largest_of_what_it_lacks() -> None:
    scene = Scene()
    scene.take(600)
    scene.submit(1, a=64, b=320)
    scene.settle()
    assert scene.admission.next_deadline_s == 60
    assert scene.admission.expire(59) == []
    assert scene.admission.expire(60) == [NeverAdmitted(1, B, 320)]


def test_what_is_lost_is_not_waited_for() -> None:
    scene = Scene()
    scene.take(320)
    scene.submit(1, a=320, b=320)
    assert scene.settle() == []
    scene.admission.spare(1, B)
    assert scene.settle() == [1]


def test_a_get_that_is_short_for_long_has_files_for_what_finds_no_memory() -> None:
    scene = Scene(disk_after_s=5)
    scene.take(320)
    scene.submit(1, a=192, b=192)
    assert scene.settle() == []
    assert scene.admission.next_deadline_s == 5
    scene.now_s = 5
    assert scene.admission.expire(5) == []
    assert scene.settle() == [1]
    assert (scene.admission.is_for_disk(A), scene.admission.is_for_disk(B)) == (False, True)


def test_where_no_memory_came_free_for_long_a_get_does_not_wait_unless_some_can_be_made() -> None:
    scene = Scene(disk_after_s=5)
    scene.take(640)
    scene.submit(1, a=64)
    scene.settle()
    scene.admission.withdraw(1)
    scene.now_s = 7
    scene.submit(2, a=64)
    assert scene.settle() == []
    assert scene.admission.next_deadline_s == 5  # it is over
    scene.store.seal(ObjectKey(b"own"), CLIENT)  # now it can be spilled
    assert scene.admission.next_deadline_s == 12


def test_arguments_get_files_only_when_they_are_in_the_first_class() -> None:
    scene = Scene(disk_after_s=5, overtaken_max_s=15)
    scene.take(640)
    scene.submit(1, TASK_ARGUMENTS, a=64)
    assert scene.settle() == []
    assert scene.admission.next_deadline_s == 15


def test_arguments_get_files_at_once_where_no_memory_came_free_for_as_long_as_the_first_waited() -> None:
    scene = Scene(disk_after_s=5, overtaken_max_s=15)
    scene.take(640)
    scene.submit(1, TASK_ARGUMENTS, a=64)
    assert scene.settle() == []
    scene.now_s = 15
    assert scene.admission.expire(scene.now_s) == [] and scene.settle() == [1]
    scene.now_s = 16
    scene.submit(2, TASK_ARGUMENTS, b=64)
    assert scene.settle() == [1]
    assert scene.admission.next_deadline_s == 15  # it is over


def test_what_can_never_fit_is_admitted_at_once_without_what_is_promised_to_others() -> None:
    scene = Scene(disk_after_s=5)
    scene.submit(1, a=320)
    scene.submit(2, b=320, c=320, d=320)
    assert scene.settle() == [1, 2]
    assert [scene.admission.is_for_disk(each) for each in (A, B, C, D)] == [False, False, True, True]


def test_who_may_use_the_disk_gives_memory_back_before_it_gives_way() -> None:
    scene = Scene(disk_after_s=5)
    scene.submit(1, a=320, b=640)
    assert scene.settle() == [1]
    scene.take(640)
    assert scene.settle() == [1]
    assert scene.admission.is_for_disk(A) and scene.admission.is_for_disk(B)


def test_where_the_disk_has_no_room_who_could_fit_waits_for_memory_and_is_told_both() -> None:
    scene = Scene(disk_after_s=0)
    scene.take(640)
    scene.submit(1, a=320)
    scene.settle()
    scene.admission.expire(0)
    assert scene.settle() == [1]
    for effect in scene.admission.refused_a_file(A, "full"):
        scene.follow(effect)
    assert scene.settle() == []
    assert scene.admission.next_deadline_s == 60
    assert scene.admission.expire(60) == [NeverAdmitted(1, A, 320, "full")]
    scene.admission.withdraw(1)
    scene.submit(2, a=320, b=640)
    assert scene.settle() == [2]
    assert scene.admission.refused_a_file(A, "full") == []


class RequestsUnderAnyEvents(RuleBasedStateMachine):
    """Whatever happens in whatever order: what is held and promised fits, the invariants hold, and when every
    reader lets go each request has its turn."""

    objects = st.sampled_from([A, B, C, D])
    sizes = st.sampled_from([64, 128, 320])

    @initialize(disk_after_s=st.sampled_from([None, 0.0, 5.0]))
    def begin(self, disk_after_s: float | None) -> None:
        self.scene = Scene(disk_after_s=disk_after_s)
        self.has_disk = disk_after_s is not None
        self.number = 0
        self.wanted: dict[int, dict[ObjectKey, int]] = {}
        self.placed: set[ObjectKey] = set()

    @rule(
        names=st.sets(objects, min_size=1, max_size=4),
        priority=st.sampled_from(Priority),
        knows=st.booleans(),
    )
    def submit(self, names: set[ObjectKey], priority: Priority, knows: bool) -> None:
        self.number += 1
        chosen = sorted(names)[: 4 if self.has_disk else 2]  # without a disk it must fit
        sizes = {name: 64 * (1 + 2 * name[0] % 5) for name in chosen}
        self.wanted[self.number] = sizes
        known = {name: size if knows else 0 for name, size in sizes.items()}
        self.scene.admission.submit(self.number, priority, known, self.scene.now_s)
        self.settle()

    @rule()
    def bytes_arrive(self) -> None:
        """The next copy of somebody who is admitted has its header."""
        for number in self.scene.holding:
            for name, size in self.wanted[number].items():
                if name not in self.placed:
                    if self.scene.place(name, size):
                        self.placed.add(name)
                    else:
                        self.scene.follow(self.scene.admission.refused(name, size))
                    self.settle()
                    return

    @rule()
    def whole_gets_are_read(self) -> None:
        for number in list(self.scene.holding):
            if self.wanted[number].keys() <= self.placed:
                self.scene.holding.remove(number)
                self.scene.admission.withdraw(number)
                del self.wanted[number]
        self.settle()

    @rule(passed_s=st.integers(1, 20))
    def time_passes(self, passed_s: int) -> None:
        self.scene.now_s += passed_s
        if self.scene.admission.next_deadline_s is not None:
            for late in self.scene.admission.expire(self.scene.now_s):
                del self.wanted[late.number]
                self.scene.admission.withdraw(late.number)
        self.settle()

    def settle(self) -> None:
        before = None
        while before != (before := (len(self.placed), self.scene.settle())):
            held = {name for number in self.scene.holding for name in self.wanted[number]}
            for name in self.placed - held:
                self.scene.store.abort(name, TRANSFERS)
            self.placed &= held

    @invariant()
    def only_who_is_admitted_holds(self) -> None:
        self.scene.admission.check_invariants()
        held = {name for number in self.scene.holding for name in self.wanted[number]}
        assert self.placed <= held

    def teardown(self) -> None:
        for _ in range(200):
            self.bytes_arrive()
            self.whole_gets_are_read()
        assert len(self.scene.admission) == 0


RequestsUnderAnyEvents.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestRequestsUnderAnyEvents = RequestsUnderAnyEvents.TestCase
