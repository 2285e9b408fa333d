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
from tests.rpc.lead_model import BLOCKED, END, Model, Program, Step, Thread

AT_ONCE, MARKED, HELD, FINALIZER = "at once", "marked", "held", "finalizer"


def me(thread: Thread) -> int:
    """The thread as the operating system knows it."""
    return thread.program.host or thread.number


def locked(step: Step) -> Step:
    """Takes the lock, if it has it not, and goes on without a pause:
    what others reach without the lock is touched once at most.
    """

    def run(m: Model, t: Thread) -> str | None:
        if m.lock not in (0, t.number):
            return BLOCKED
        m.lock = t.number
        return step(m, t)

    return run


def ring(prefix: str) -> list[tuple[str, Step]]:
    """Reactor.wake, one access after the other. Lets go of the lock, if the thread has it."""

    def leave(m: Model, t: Thread) -> str:
        t.nap = 0
        if m.lock == t.number:
            m.lock = 0
        return END

    def read(m: Model, t: Thread) -> str | None:
        if "the leader does not ring for itself" in m.faults and m.lead.leader == me(t):
            return leave(m, t)
        t.nap = m.lead.nap
        return None

    def decide(m: Model, t: Thread) -> str | None:
        if type(m.lead) is not Lead:
            t.nap = m.lead.bell()
            m.lead.rang(t.nap)  # noted before it is rung, as it was
        else:
            seen = Lead()
            seen.nap, seen.rung = t.nap, m.lead.rung
            t.nap = seen.bell()
        return None if t.nap else leave(m, t)

    def write(m: Model, t: Thread) -> str | None:
        m.bell = True
        return None if type(m.lead) is Lead else leave(m, t)

    def note(m: Model, t: Thread) -> str:
        m.lead.rang(m.lead.nap if "a ring is noted for the present nap" in m.faults else t.nap)
        return leave(m, t)

    return [(f"{prefix}: read nap", read), ("bell", decide), ("write", write), ("rang", note)]


def doze(m: Model, t: Thread) -> None:
    if "the last look comes before the nap" not in m.faults:
        m.lead.doze()


def last_look(m: Model, t: Thread) -> str | None:
    if m.dirty or m.queue:
        return None
    return "bound" if "the last look comes before the nap" in m.faults else bound(m, t)


def settle_again(m: Model, t: Thread) -> None:
    if m.queue and m.lead.bell():
        # What this leads to rings for the leader itself.
        m.bell = True
        m.lead.rang(m.lead.nap)
    m.settle()


def bound(m: Model, t: Thread) -> str:
    if "the last look comes before the nap" in m.faults:
        m.lead.doze()
    m.poll_knows_timer = m.timer
    m.lock = 0
    return "poll"


def poll(m: Model, t: Thread) -> str | None:
    by_time = m.timer and m.poll_knows_timer
    if not (m.bell or m.answers or by_time):
        return BLOCKED
    t.events = (m.bell, bool(m.answers), by_time)
    return None


def rise(m: Model, t: Thread) -> None:
    m.lead.rise()


def reset_flag(m: Model, t: Thread) -> str | None:
    if type(m.lead) is Lead:
        return handle(m, t)
    if t.events[0]:
        m.lead.rung = 0
    return None


def handle(m: Model, t: Thread) -> str:
    if t.events[0]:
        m.bell = False
    if t.events[1]:
        for caller in m.answers:
            m.set_waiter(caller)
        m.dirty += (0,) * len(m.answers)  # a credit, the next call, …
        m.answers = ()
    if t.events[2]:
        m.timer = False
    t.events = (False, False, False)
    return "settle"


def turns(is_enough: Callable[[Model, Thread], bool]) -> list[tuple[str, Step]]:
    """From the last look before a poll on, until is_enough; the lock is held where it begins."""

    def settle(m: Model, t: Thread) -> str:
        m.settle()
        return "end part" if is_enough(m, t) else "doze"

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


def leave(m: Model) -> None:
    """The background is woken, or its clock is set: then it looks after a while."""
    m.lead.leave()
    if "who leaves the lead wakes nobody" not in m.faults:
        m.standby = True


# ---------------------------------------------------------------- programs


def background() -> Program:
    def look(m: Model, t: Thread) -> str:
        t.part = m.lead.look(t.number)
        m.standby = False
        m.lock = 0
        if t.part == LEADS:
            return "turn"
        return "sleep long" if t.part == SLEEPS_LONG else "look"  # STANDBY_S have passed

    def sleep_long(m: Model, t: Thread) -> str:
        return "look" if m.standby else BLOCKED

    def step_down(m: Model, t: Thread) -> str:
        m.lead.step_down()
        m.lock = 0
        return "look"

    steps = [("look", locked(look)), ("sleep long", sleep_long), *turns(lambda m, t: m.lead.is_relieved)]
    return Program([*steps, ("end part", locked(step_down))], is_endless=True)


def caller(
    calls: bool = True, host: int = 0, only_at: str = "", gives_up: bool = False, is_endless: bool = False
) -> Program:
    """Makes a call (or waits for what comes by itself: an idle worker's main thread) and waits."""

    def call(m: Model, t: Thread) -> None:
        if calls:
            m.dirty += (t.number,)
            m.flush()
        m.lock = 0

    def enter(m: Model, t: Thread) -> str:
        m.settle()
        if t.number in m.done:
            m.lock = 0
            return END
        t.part = m.lead.take(me(t))
        if t.part != SLEEPS:
            return "doze"
        m.lead.sleepers.add(t.number)
        m.lock = 0
        return "sleep"

    def sleep(m: Model, t: Thread) -> str:
        return "end part" if t.number in m.woken else BLOCKED

    def end_part(m: Model, t: Thread) -> str:
        if t.part == SLEEPS:
            m.lead.sleepers.discard(t.number)
        elif t.part == LEADS:
            m.flush()
            leave(m)
        elif t.part == NESTED:
            m.lead.rise()
            m.bell = m.bell or "a nested wait does not ring" not in m.faults
        m.lock = t.part = 0
        return END

    steps = [("call", locked(call)), ("enter", locked(enter)), ("sleep", sleep)]
    steps += [*turns(lambda m, t: t.number in m.done), ("end part", locked(end_part))]
    return Program(steps, is_endless, host, only_at, gives_up)


def sender(kind: str, host: int = 0) -> Program:
    """Leaves one thing to be sent."""

    def leave(m: Model, t: Thread) -> str | None:
        m.dirty += (0,)
        rings = False
        if kind == AT_ONCE:
            m.flush()
        elif kind == MARKED:
            rings = bool(m.lead.nap) and "a buffered write rings nobody" not in m.faults
        elif m.lead.nap and not m.timer and "a held answer has no timer" not in m.faults:
            m.timer = True
            rings = not m.poll_knows_timer
        if rings:
            return None
        m.lock = 0
        return END

    def finalize(m: Model, t: Thread) -> None:
        m.queue += 1

    return Program([("leave", finalize if kind == FINALIZER else locked(leave)), *ring(kind)], host=host)


def awaiter() -> Program:
    """Waits for a future, which a handler completes."""

    def call(m: Model, t: Thread) -> None:
        m.dirty += (t.number,)
        m.flush()
        if m.lead.hand_over():
            m.standby = True
        m.lock = 0

    def await_answer(m: Model, t: Thread) -> str:
        return END if t.number in m.done else BLOCKED

    return Program([("call", locked(call)), ("await", await_answer)])


def submitter(is_busy: bool = True) -> Program:
    """Makes calls one after another, and a turn now and then."""

    def call(m: Model, t: Thread) -> None:
        m.dirty += (0,)

    def turn(m: Model, t: Thread) -> str | None:
        if not m.lead.take_turn(me(t), is_busy):
            # As any buffered write: the leader is rung.
            return None if m.lead.nap else let_go(m, t)
        t.events = (m.bell, bool(m.answers), m.timer)
        handle(m, t)
        m.settle()
        leave(m)
        return let_go(m, t)

    def let_go(m: Model, t: Thread) -> str:
        m.lock = 0
        return END

    return Program([("call", locked(call)), ("turn", locked(turn)), *ring("submit")])


def setter(caller_number: int) -> Program:
    """Another thread ends a caller's wait, without the sockets."""

    def end_wait(m: Model, t: Thread) -> str | None:
        is_asleep = caller_number in m.lead.sleepers
        m.set_waiter(caller_number)
        if not is_asleep:
            return None
        m.lock = 0
        return END

    return Program([("end wait", locked(end_wait)), *ring("set")])


def peer() -> Program:
    def answer(m: Model, t: Thread) -> str:
        if not m.wire:
            return BLOCKED
        m.answers, m.wire = (*m.answers, m.wire[0]), m.wire[1:]
        return "answer"

    return Program([("answer", answer)], is_endless=True)
