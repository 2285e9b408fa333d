"""`ray.util.actor_group`: several actors of one class, called together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray_mono as ray


class ActorGroup:
    """`group.method.remote(...)` calls every actor.

    It returns their references, in the order of the actors.
    """

    def __init__(
        self,
        actor_cls: type,
        num_actors: int = 1,
        num_cpus_per_actor: float = 1,
        num_gpus_per_actor: float = 0,
        resources_per_actor: Mapping[str, float] | None = None,
        init_args: Sequence[Any] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ValueError for less than one actor, or negative amounts."""
        if num_actors <= 0 or num_cpus_per_actor < 0 or num_gpus_per_actor < 0:
            raise ValueError(
                "num_actors must be at least 1, num_cpus_per_actor and num_gpus_per_actor at least 0; got"
                f" {num_actors!r}, {num_cpus_per_actor!r} and {num_gpus_per_actor!r}"
            )
        options = {
            "num_cpus": num_cpus_per_actor,
            "num_gpus": num_gpus_per_actor,
            "resources": resources_per_actor,
        }
        self._class: Any = ray.remote(actor_cls).options(
            **{k: v for k, v in options.items() if v is not None}
        )
        self._arguments = (tuple(init_args or ()), dict(init_kwargs or {}))
        self._num_actors = num_actors
        self.actors: list[Any] = []
        self.start()

    def start(self) -> None:
        """Makes the actors. Raises RuntimeError where they are there already."""
        if self.actors:
            raise RuntimeError("the actors were started already: call shutdown() first")
        self.add_actors(self._num_actors)

    def add_actors(self, num_actors: int) -> None:
        args, kwargs = self._arguments
        self.actors += [self._class.remote(*args, **kwargs) for _ in range(num_actors)]

    def remove_actors(self, actor_indexes: Sequence[int]) -> None:
        """Ends the actors with these numbers."""
        for index in sorted(set(actor_indexes), reverse=True):
            ray.kill(self.actors.pop(index))

    def shutdown(self, patience_s: float = 5) -> None:
        """Ends all actors. patience_s has no effect: they end at once here."""
        self.remove_actors(range(len(self.actors)))

    def __len__(self) -> int:
        return len(self.actors)

    def __getitem__(self, index: int) -> Any:
        return self.actors[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(self._class, "remote"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return ActorGroupMethod(self, name)


class ActorGroupMethod:
    """One method of all actors of a group."""

    def __init__(self, group: ActorGroup, name: str) -> None:
        self._group = group
        self._name = name

    def remote(self, *args: Any, **kwargs: Any) -> list[Any]:
        return [getattr(actor, self._name).remote(*args, **kwargs) for actor in self._group.actors]
