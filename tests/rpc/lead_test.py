"""Nobody waits for what has happened:
the reactor's threads through all interleavings of their steps (lead_model.py).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from ray_mono.rpc.lead import Lead
from ray_mono.rpc.reactor import Reactor, Waiter
from tests.rpc.lead_model import Model, Program, explore
from tests.rpc.lead_programs import (
    AT_ONCE,
    FINALIZER,
    HELD,
    MARKED,
    awaiter,
    background,
    caller,
    peer,
    sender,
    setter,
    submitter,
)


def idle_worker() -> Program:
    """Its main thread: waits for calls that may never come."""
    return caller(calls=False, is_endless=True)


SCENES = {
    # A driver: threads in `get`, others that submit, acknowledge items or cancel, and references that end
    # meanwhile.
    "one get": lambda: [caller(), background(), peer()],
    "a get beside a first call": lambda: [caller(), background(), sender(AT_ONCE), peer()],
    "a get beside further calls": lambda: [caller(), background(), sender(MARKED), peer()],
    "a get while references end": lambda: [caller(), background(), sender(FINALIZER), peer()],
    "references that end on the thread that waits": lambda: [
        caller(),
        background(),
        sender(FINALIZER, host=1),
        peer(),
    ],
    "a loop that submits and cancels, nobody in get": lambda: [background(), sender(MARKED), sender(MARKED)],
    "a loop that submits while references end": lambda: [background(), sender(MARKED), sender(FINALIZER)],
    "two get at once": lambda: [caller(), caller(), background(), peer()],
    "a get that gives up beside another": lambda: [caller(gives_up=True), caller(), background(), peer()],
    "a get that gives up, and calls": lambda: [caller(gives_up=True), background(), sender(MARKED), peer()],
    "a signal handler that waits on the waiting thread": lambda: [
        caller(),
        caller(host=1, only_at="poll"),
        background(),
        peer(),
    ],
    "a wait that another thread ends": lambda: [caller(calls=False), background(), setter(1)],
    "a burst of calls beside a get": lambda: [caller(), background(), submitter(), peer()],
    "bursts of calls while references end": lambda: [
        background(),
        submitter(),
        submitter(),
        sender(FINALIZER),
    ],
    "a future that is awaited": lambda: [awaiter(), background(), peer()],
    "a future beside a get and a burst": lambda: [awaiter(), caller(), background(), submitter(), peer()],
    "a future beside a burst": lambda: [awaiter(), background(), submitter(is_busy=False), peer()],
    "a burst of calls while two get": lambda: [caller(), caller(), background(), submitter(), peer()],
    # A worker: its main thread waits for calls or runs one;
    # threads and the loop of an actor answer and send items.
    "an idle worker whose loop sends items": lambda: [
        idle_worker(),
        background(),
        sender(MARKED),
        sender(MARKED),
    ],
    "an idle worker whose threads hold answers back": lambda: [
        idle_worker(),
        background(),
        sender(HELD),
        sender(HELD),
    ],
    "answers held back beside items": lambda: [idle_worker(), background(), sender(HELD), sender(MARKED)],
    "an idle worker where references end": lambda: [
        idle_worker(),
        background(),
        sender(FINALIZER),
        sender(MARKED),
    ],
    "an idle worker that collects garbage itself": lambda: [
        idle_worker(),
        background(),
        sender(FINALIZER, host=1),
    ],
    "garbage of the background thread": lambda: [background(), sender(FINALIZER, host=1), sender(MARKED)],
    "a busy worker that holds an answer back": lambda: [background(), sender(HELD), sender(FINALIZER)],
    "a task that waits and gives back others": lambda: [
        caller(),
        background(),
        sender(MARKED),
        sender(HELD),
        peer(),
    ],
}


@pytest.mark.parametrize("scene", SCENES)
def test_what_is_left_to_do_is_always_done(scene: str) -> None:
    states, way = explore(SCENES[scene]())
    assert way is None, "\n".join(way)
    assert states > 10


@pytest.mark.parametrize(
    ("fault", "scene"),
    [
        ("flag reset before the eventfd is read", "a loop that submits while references end"),
        ("the last look comes before the nap", "an idle worker where references end"),
        ("the leader does not ring for itself", "an idle worker that collects garbage itself"),
        ("a ring is noted for the present nap", "a loop that submits while references end"),
        ("a buffered write rings nobody", "an idle worker whose loop sends items"),
        ("a held answer has no timer", "a busy worker that holds an answer back"),
        ("who leaves the lead wakes nobody", "two get at once"),
        ("a nested wait does not ring", "a signal handler that waits on the waiting thread"),
    ],
)
def test_a_fault_is_found(fault: str, scene: str) -> None:
    _, way = explore(SCENES[scene](), frozenset({fault}))
    assert way is not None


# ---------------------------------------------------------------- the model and the product

Moves = set[tuple[str, str]]
WAIT_S = 30.0


def recorded(monkeypatch: pytest.MonkeyPatch, last_moves: Callable[[], dict[str, str]]) -> Moves:
    """Which move of the lead each thread makes after which;
    last_moves() is the present thread's own, to be kept in.
    """
    moves: Moves = set()

    def record(name: str) -> None:
        method = getattr(Lead, name)

        def move(self: Lead, *args: int) -> object:
            result = method(self, *args)
            of_thread = last_moves()
            this = f"{name} {result}" if args else name
            moves.add(
                ("" if name.startswith("take") or name == "hand_over" else of_thread.get("last", ""), this)
            )
            of_thread["last"] = this
            return result

        monkeypatch.setattr(Lead, name, move)

    for name in ("take", "take_turn", "hand_over", "leave", "doze", "rise", "look", "step_down"):
        record(name)
    return moves


class _OfModel(dict[str, str]):
    def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
        return Model.moving.last_move

    def __setitem__(self, key: str, value: str) -> None:
        Model.moving.last_move = value


def test_the_reactor_makes_no_move_that_the_model_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as during:
        of_model = recorded(during, _OfModel)
        explore([caller(gives_up=True), caller(), background(), peer()])
        explore([caller(gives_up=True), awaiter(), background(), peer()])
        for is_busy in (True, False):
            explore([caller(calls=False, gives_up=True), submitter(is_busy), background()])
        # When the background has just stepped down, one may lead and cease to, and another sleep meanwhile.
        explore([*[caller(calls=False, gives_up=True) for _ in range(3)], background()])
    by_thread: dict[int, dict[str, str]] = {}
    with monkeypatch.context() as during:
        of_product = recorded(during, lambda: by_thread.setdefault(threading.get_ident(), {}))
        reactor = Reactor("compared")

        def play(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(30):
                waiter = Waiter(reactor)
                with reactor.lock:
                    reactor.call_later(draw.random() * 0.002, waiter.set)
                    if draw.random() < 0.2:
                        reactor.hand_over()
                if draw.random() < 0.5:
                    reactor.take_turn()
                reactor.wait(waiter, draw.choice([0.0005, WAIT_S]))
                # As long as the background takes to lead, now and then.
                threading.Event().wait(draw.choice([0.0, 0.0, 0.0, 0.01]))

        threads = [threading.Thread(target=play, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    reactor.close()
    assert len(of_product) > 8
    assert of_product <= of_model, of_product - of_model
