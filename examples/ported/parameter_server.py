"""Trains a classifier with a parameter server: an actor holds the weights, workers compute gradients.

    python parameter_server.py [--workers N] [--rounds N] [--seed N]

The model is a softmax regression in numpy on points drawn around the corners of a simplex. It is trained
twice:

- synchronously: each round every worker computes a gradient from the same weights, and the server applies
  their mean; every number is the same in every run;
- asynchronously: each worker goes on as soon as the server has taken its own gradient. The order differs from
  run to run, so only what holds in each is printed.
"""

from __future__ import annotations

import argparse

import numpy as np
import ray

NUM_CLASSES = 5
NUM_FEATURES = 12
BATCH = 64
LEARNING_RATE = 0.3
GOOD_ACCURACY = 0.95

Points = tuple[np.ndarray, np.ndarray]
"""Features of one point per row, and its class."""


def draw(num_points: int, seed: int) -> Points:
    rng = np.random.default_rng(seed)
    classes = rng.integers(NUM_CLASSES, size=num_points)
    centers = 2.0 * np.eye(NUM_CLASSES, NUM_FEATURES)
    return centers[classes] + 0.6 * rng.standard_normal((num_points, NUM_FEATURES)), classes


def scores(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    return features @ weights[:-1] + weights[-1]


def gradient(weights: np.ndarray, points: Points) -> np.ndarray:
    """Of the mean cross entropy, by the weights; the last row belongs to the bias."""
    features, classes = points
    odds = np.exp(scores(weights, features) - scores(weights, features).max(axis=1, keepdims=True))
    errors = odds / odds.sum(axis=1, keepdims=True)
    errors[np.arange(len(classes)), classes] -= 1
    return np.vstack([features.T @ errors, errors.sum(axis=0)]) / len(classes)


def accuracy(weights: np.ndarray, points: Points) -> float:
    features, classes = points
    return float((scores(weights, features).argmax(axis=1) == classes).mean())


@ray.remote
class ParameterServer:
    """Has the weights."""

    def __init__(self) -> None:
        self._weights = np.zeros((NUM_FEATURES + 1, NUM_CLASSES))
        self._num_updates = 0

    def apply(self, *gradients: np.ndarray) -> np.ndarray:
        """One step along the mean of these; returns the new weights."""
        self._weights = self._weights - LEARNING_RATE * np.mean(gradients, axis=0)
        self._num_updates += 1
        return self._weights

    def weights(self) -> np.ndarray:
        return self._weights

    def num_updates(self) -> int:
        return self._num_updates


@ray.remote
class Worker:
    """Has a part of the data, and computes gradients from a batch at a time."""

    def __init__(self, number: int, seed: int) -> None:
        self._points = draw(20 * BATCH, seed + 1 + number)
        self._next = 0

    def compute(self, weights: np.ndarray) -> np.ndarray:
        features, classes = self._points
        rows = slice(self._next, self._next + BATCH)
        self._next = (self._next + BATCH) % len(classes)
        return gradient(weights, (features[rows], classes[rows]))


def make_workers(arguments: argparse.Namespace) -> list[ray.actor.ActorHandle]:
    return [Worker.remote(number, arguments.seed) for number in range(arguments.workers)]


def train_together(arguments: argparse.Namespace, test: Points) -> None:
    server = ParameterServer.remote()
    workers = make_workers(arguments)
    weights = server.weights.remote()
    for number in range(arguments.rounds):
        # Weights and gradients go from actor to actor as references: the driver sees them only where it
        # measures.
        weights = server.apply.remote(*[worker.compute.remote(weights) for worker in workers])
        if number % 10 == 9:
            print(f"synchronous, round {number + 1:>3}: accuracy {accuracy(ray.get(weights), test):.3f}")


def train_apart(arguments: argparse.Namespace, test: Points) -> None:
    server = ParameterServer.remote()
    weights = server.weights.remote()
    computing = {worker.compute.remote(weights): worker for worker in make_workers(arguments)}
    num_left = arguments.rounds * arguments.workers - len(computing)
    while computing:
        [done], _ = ray.wait(list(computing))
        worker = computing.pop(done)
        weights = server.apply.remote(done)
        if num_left:
            computing[worker.compute.remote(weights)] = worker
            num_left -= 1
    reached = accuracy(ray.get(server.weights.remote()), test)
    quality = "above" if reached > GOOD_ACCURACY else "not above"
    print(f"asynchronous, {ray.get(server.num_updates.remote())} updates: accuracy {quality} {GOOD_ACCURACY}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=50, help="gradients of each worker (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the data (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.workers < 1 or arguments.rounds < 1:
        parser.error("--workers and --rounds must be at least 1")

    ray.init(num_cpus=4)
    test = draw(2_000, arguments.seed)
    untrained = accuracy(np.zeros((NUM_FEATURES + 1, NUM_CLASSES)), test)
    print(f"{arguments.workers} workers; untrained: accuracy {untrained:.3f}")
    train_together(arguments, test)
    train_apart(arguments, test)
    ray.shutdown()


if __name__ == "__main__":
    main()
