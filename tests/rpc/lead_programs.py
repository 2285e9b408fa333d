"""The programs of the threads in lead_model.py: the sequence of reactor.py, step by step.

What is sent, by whom:

    kind                                         buffered by                      goes by
    a call with nothing in flight on its channel the caller                       itself (AT_ONCE)
    further calls, credits, cancels, give-backs, the caller; a thread that takes  the leader: rung (MARKED)
    items that collect                           items, or begins to wait
    answers of short calls of an actor           main thread, threads, loop       the leader: timer (HELD)
    releases, ends of references                 a finalizer, without the lock    the leader: rung (FINALIZER)
    whatever a handler sends                     the leader                       the end of its turn
"""

from __future__ import annotations

from collections.abc import Callable

from ray_mono.rpc.lead import LEADS, NESTED, SLEEPS, SLEEPS_LONG, Lead
from tests.rpc.lead_model import BLOCKED, END, Program, Step, Thread, World

AT_ONCE, MARKED, HELD, FINALIZER = "at once", "marked", "held", "finalizer"


def me(thread: Thread) -> int:
    """The thread as the operating system knows it."""
    return thread.program.host or thread.number


def locked(step: Step) -> Step:
    """Takes the lock, if it has it not, and goes on without a pause:
    what others reach without the lock is touched once at most.
    """

    def run(w: World, t: Thread) -> str | None:
        if w.lock not in (0, t.number):
            return BLOCKED
        w.lock = t.number
        return step(w, t)

    return run


def ring(prefix: str) -> list[tuple[str, Step]]:
    """Reactor.wake, one access after the other. Lets go of the lock, if the thread has it."""

    def leave(w: World, t: Thread) -> str:
        t.nap = 0
        if w.lock == t.number:
            w.lock = 0
        return END

    def read(w: World, t: Thread) -> str | None:
        if "the leader does not ring for itself" in w.faults and w.lead.leader == me(t):
            return leave(w, t)
        t.nap = w.lead.nap
        return None

    def decide(w: World, t: Thread) -> str | None:
        if type(w.lead) is not Lead:
            t.nap = w.lead.bell()
            w.lead.rang(t.nap)  # noted before it is rung, as it was
        else:
            seen = Lead()
            seen.nap, seen.rung = t.nap, w.lead.rung
            t.nap = seen.bell()
        return None if t.nap else leave(w, t)

    def write(w: World, t: Thread) -> str | None:
        w.bell = True
        return None if type(w.lead) is Lead else leave(w, t)

    def note(w: World, t: Thread) -> str:
        w.lead.rang(w.lead.nap if "a ring is noted for the present nap" in w.faults else t.nap)
        return leave(w, t)

    return [(f"{prefix}: read nap", read), ("bell", decide), ("write", write), ("rang", note)]


def doze(w: World, t: Thread) -> None:
    if "the last look comes before the nap" not in w.faults:
        w.lead.doze()


def last_look(w: World, t: Thread) -> str | None:
    if w.dirty or w.queue:
        return None
    return "bound" if "the last look comes before the nap" in w.faults else bound(w, t)


def settle_again(w: World, t: Thread) -> None:
    if w.queue and w.lead.bell():
        # What this leads to rings for the leader itself.
        w.bell = True
        w.lead.rang(w.lead.nap)
    w.settle()


def bound(w: World, t: Thread) -> str:
    if "the last look comes before the nap" in w.faults:
        w.lead.doze()
    w.poll_knows_timer = w.timer
    w.lock = 0
    return "poll"


def poll(w: World, t: Thread) -> str | None:
    by_time = w.timer and w.poll_knows_timer
    if not (w.bell or w.answers or by_time):
        return BLOCKED
    t.events = (w.bell, bool(w.answers), by_time)
    return None


def rise(w: World, t: Thread) -> None:
    w.lead.rise()


def reset_flag(w: World, t: Thread) -> str | None:
    if type(w.lead) is Lead:
        return handle(w, t)
    if t.events[0]:
        w.lead.rung = 0
    return None


def handle(w: World, t: Thread) -> str:
    if t.events[0]:
        w.bell = False
    if t.events[1]:
        for caller in w.answers:
            w.set_waiter(caller)
        w.dirty += (0,) * len(w.answers)  # a credit, the next call, …
        w.answers = ()
    if t.events[2]:
        w.timer = False
    t.events = (False, False, False)
    return "settle"


def turns(is_enough: Callable[[World, Thread], bool]) -> list[tuple[str, Step]]:
    """From the last look before a poll on, until is_enough; the lock is held where it begins."""

    def settle(w: World, t: Thread) -> str:
        w.settle()
        return "end part" if is_enough(w, t) else "doze"

    return [
        ("doze", doze),
        ("last look", last_look),
        ("settle again", settle_again),
        ("bound", bound),
        ("poll", poll),
        ("rise", rise),
        ("turn", locked(reset_flag)),
        ("handle", handle),
        ("settle", settle),
    ]


def leave(w: World) -> None:
    """The background is woken, or its clock is set: then it looks after a while."""
    w.lead.leave()
    if "who leaves the lead wakes nobody" not in w.faults:
        w.standby = True


# ---------------------------------------------------------------- programs


def background() -> Program:
    def look(w: World, t: Thread) -> str:
        t.part = w.lead.look(t.number)
        w.standby = False
        w.lock = 0
        if t.part == LEADS:
            return "turn"
        return "sleep long" if t.part == SLEEPS_LONG else "look"  # STANDBY_S have passed

    def sleep_long(w: World, t: Thread) -> str:
        return "look" if w.standby else BLOCKED

    def step_down(w: World, t: Thread) -> str:
        w.lead.step_down()
        w.lock = 0
        return "look"

    steps = [("look", locked(look)), ("sleep long", sleep_long), *turns(lambda w, t: w.lead.is_relieved)]
    return Program([*steps, ("end part", locked(step_down))], is_endless=True)


def caller(
    calls: bool = True, host: int = 0, only_at: str = "", gives_up: bool = False, is_endless: bool = False
) -> Program:
    """Makes a call (or waits for what comes by itself: an idle worker's main thread) and waits."""

    def call(w: World, t: Thread) -> None:
        if calls:
            w.dirty += (t.number,)
            w.flush()
        w.lock = 0

    def enter(w: World, t: Thread) -> str:
        w.settle()
        if t.number in w.done:
            w.lock = 0
            return END
        t.part = w.lead.take(me(t))
        if t.part != SLEEPS:
            return "doze"
        w.lead.sleepers.add(t.number)
        w.lock = 0
        return "sleep"

    def sleep(w: World, t: Thread) -> str:
        return "end part" if t.number in w.woken else BLOCKED

    def end_part(w: World, t: Thread) -> str:
        if t.part == SLEEPS:
            w.lead.sleepers.discard(t.number)
        elif t.part == LEADS:
            w.flush()
            leave(w)
        elif t.part == NESTED:
            w.lead.rise()
            w.bell = w.bell or "a nested wait does not ring" not in w.faults
        w.lock = t.part = 0
        return END

    steps = [("call", locked(call)), ("enter", locked(enter)), ("sleep", sleep)]
    steps += [*turns(lambda w, t: t.number in w.done), ("end part", locked(end_part))]
    return Program(steps, is_endless, host, only_at, gives_up)


def sender(kind: str, host: int = 0) -> Program:
    """Leaves one thing to be sent."""

    def leave(w: World, t: Thread) -> str | None:
        w.dirty += (0,)
        rings = False
        if kind == AT_ONCE:
            w.flush()
        elif kind == MARKED:
            rings = bool(w.lead.nap) and "a buffered write rings nobody" not in w.faults
        elif w.lead.nap and not w.timer and "a held answer has no timer" not in w.faults:
            w.timer = True
            rings = not w.poll_knows_timer
        if rings:
            return None
        w.lock = 0
        return END

    def finalize(w: World, t: Thread) -> None:
        w.queue += 1

    return Program([("leave", finalize if kind == FINALIZER else locked(leave)), *ring(kind)], host=host)


def awaiter() -> Program:
    """Waits for a future, which a handler completes."""

    def call(w: World, t: Thread) -> None:
        w.dirty += (t.number,)
        w.flush()
        if w.lead.hand_over():
            w.standby = True
        w.lock = 0

    def await_answer(w: World, t: Thread) -> str:
        return END if t.number in w.done else BLOCKED

    return Program([("call", locked(call)), ("await", await_answer)])


def submitter(is_busy: bool = True) -> Program:
    """Makes calls one after another, and a turn now and then."""

    def call(w: World, t: Thread) -> None:
        w.dirty += (0,)

    def turn(w: World, t: Thread) -> str | None:
        if not w.lead.take_turn(me(t), is_busy):
            # As any buffered write: the leader is rung.
            return None if w.lead.nap else let_go(w, t)
        t.events = (w.bell, bool(w.answers), w.timer)
        handle(w, t)
        w.settle()
        leave(w)
        return let_go(w, t)

    def let_go(w: World, t: Thread) -> str:
        w.lock = 0
        return END

    return Program([("call", locked(call)), ("turn", locked(turn)), *ring("submit")])


def setter(caller_number: int) -> Program:
    """Another thread ends a caller's wait, without the sockets."""

    def end_wait(w: World, t: Thread) -> str | None:
        is_asleep = caller_number in w.lead.sleepers
        w.set_waiter(caller_number)
        if not is_asleep:
            return None
        w.lock = 0
        return END

    return Program([("end wait", locked(end_wait)), *ring("set")])


def peer() -> Program:
    def answer(w: World, t: Thread) -> str:
        if not w.wire:
            return BLOCKED
        w.answers, w.wire = (*w.answers, w.wire[0]), w.wire[1:]
        return "answer"

    return Program([("answer", answer)], is_endless=True)
