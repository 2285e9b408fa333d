"""What never has enough of a node: jobs with more tasks than there is time for, and actors and groups that
come and go."""

from __future__ import annotations

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling.fair_share import LOOK_S
from tests.raylet.scheduling.lease_scene import JOB_A, JOB_B, Scene, units

ONE_CPU = units(CPU=1)


class Flood:
    """A job with more tasks than there will ever be time for: it asks for as many leases as it may, and
    keeps each as long as it can. A holder that is asked for a lease ends it when its present task is
    over."""

    def __init__(self, scene: Scene, name: str, task_s: float, job: bytes = JOB_A, **asked: object) -> None:
        self.scene = scene
        self._name = name
        self._task_s = task_s
        self._asked = {"job": job, "requester": 1, **asked}
        self._number = 0
        self.ask(4)

    def ask(self, number: int) -> None:
        for _ in range(number):
            self._number += 1
            self.scene.ask(f"{self._name} {self._number}", **self._asked)  # type: ignore[arg-type]

    @property
    def held(self) -> list[str]:
        return [name for name in self.scene.running if name.startswith(self._name)]

    def answer(self) -> None:
        """Ends what it was asked for and is between two tasks now: a lease runs them one after the other,
        from when it was granted."""
        for name in self.held:
            lease = self.scene.manager.granted(name.encode())
            assert lease is not None
            ran_s = self.scene.now_s - lease.granted_at_s + 1e-9
            if name in self.scene.reclaimed and ran_s >= self._task_s and ran_s % self._task_s < LOOK_S:
                self.scene.give_back(name)
                self.ask(1)


def run_until_granted(scene: Scene, name: str, floods: list[Flood], within_s: float) -> float:
    """How long it waited: a lease, or the bundles of a group."""
    begin_s = scene.now_s
    while name not in scene.granted and name not in scene.held:
        assert scene.now_s - begin_s <= within_s, f"{name} was not granted within {within_s} s"
        scene.wait(LOOK_S)
        for flood in floods:
            flood.answer()
    return scene.now_s - begin_s


class Stream:
    """Actors, or groups of one bundle, that come and go: `width` at a time, each for life_s."""

    def __init__(
        self, scene: Scene, kind: str, width: int, life_s: float, needs: ResourceSet = ONE_CPU
    ) -> None:
        self._scene = scene
        self._kind = kind
        self._width = width
        self._life_s = life_s
        self._needs = needs
        self._number = 0
        self._ends_s: dict[str, float] = {}
        self._waits: list[str] = []

    def answer(self) -> None:
        scene = self._scene
        for name, ends_s in list(self._ends_s.items()):
            if scene.now_s >= ends_s:
                del self._ends_s[name]
                if self._kind == "actor":
                    scene.give_back(name, dispose=True)
                    scene.worker_dies(name)
                else:
                    scene.take(scene.manager.return_bundles({name.encode(): [0]}, True, scene.now_s))
        while len(self._ends_s) + len(self._waits) < self._width:
            self._number += 1
            name = f"{self._kind[0]}{self._number:05}".ljust(18, "-")
            self._waits.append(name)
            if self._kind == "actor":
                scene.ask(name, job=JOB_B, requester=2, for_actor=True, resources=self._needs)
        for name in list(self._waits):
            if self._kind == "group":
                refusal, effects = scene.manager.prepare_bundles(name.encode(), {0: self._needs}, scene.now_s)
                scene.take(effects)
                if refusal:
                    continue
                scene.take(scene.manager.commit_bundles([(name.encode(), 0)], scene.now_s))
            elif name not in scene.granted:
                continue
            self._waits.remove(name)
            # They do not end all at once.
            self._ends_s[name] = scene.now_s + self._life_s * (1 - 0.1 * (self._number % 4))
