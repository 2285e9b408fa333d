"""Learns Atari Pong from pixels by policy gradients, with ten actors that play and a driver that learns.

    python examples/pong.py --batches 100

After Andrej Karpathy's essay "Deep Reinforcement Learning: Pong from Pixels" (2016): a network with one
hidden layer sees the difference of two frames and gives the probability of moving up; each actor plays one
episode with the batch's weights (put into the object store once), and returns the gradient of its episode;
the driver adds them up and makes one RMSProp step.

Needs the extra `examples`: gymnasium and ale-py, whose wheel carries the game.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

import ray_mono as ray

Weights = dict[str, np.ndarray]

NUM_ACTORS = 10
INPUT_SIZE = 80 * 80
HIDDEN_SIZE = 200
UP, DOWN = 2, 3  # Pong's actions
DISCOUNT = 0.99
LEARNING_RATE = 1e-3
DECAY_RATE = 0.99


def initial_weights(
    rng: np.random.Generator, input_size: int = INPUT_SIZE, hidden_size: int = HIDDEN_SIZE
) -> Weights:
    """{"W1": (input, hidden), "W2": (hidden,)}, each scaled to keep the variance of its input (Xavier)."""
    w1 = rng.standard_normal((input_size, hidden_size)) / np.sqrt(input_size)
    w2 = rng.standard_normal(hidden_size) / np.sqrt(hidden_size)
    return {"W1": w1.astype(np.float32), "W2": w2.astype(np.float32)}


def preprocess(frame: np.ndarray) -> np.ndarray:
    """A (210, 160, 3) frame as a vector of 6400: cropped, every second pixel, 1 where there is a paddle or
    the ball."""
    image = frame[35:195:2, ::2, 0]
    return ((image != 144) & (image != 109) & (image != 0)).astype(np.float32).ravel()


def forward(weights: Weights, x: np.ndarray) -> tuple[float, np.ndarray]:
    """(probability of UP, hidden layer) for one input vector. Few of its pixels differ from zero, so only
    their rows are read."""
    moved = np.flatnonzero(x)
    hidden = x[moved] @ weights["W1"][moved]
    hidden[hidden < 0] = 0
    logit = float(weights["W2"] @ hidden)
    return 1.0 / (1.0 + np.exp(-logit)), hidden


def backward(weights: Weights, inputs: np.ndarray, hiddens: np.ndarray, dlogits: np.ndarray) -> Weights:
    """The gradient of the sum of dlogits * logit over an episode.

    inputs: (steps, input), hiddens: (steps, hidden) as forward gave them, dlogits: (steps,).
    """
    dhidden = np.outer(dlogits, weights["W2"])
    dhidden[hiddens <= 0] = 0
    return {"W1": inputs.T @ dhidden, "W2": hiddens.T @ dlogits}


def discount_rewards(rewards: np.ndarray) -> np.ndarray:
    """What each step is worth: later rewards, discounted. A reward ends a rally, so the sum starts anew
    there."""
    discounted = np.zeros_like(rewards, dtype=np.float64)
    running = 0.0
    for step in range(len(rewards) - 1, -1, -1):
        running = rewards[step] if rewards[step] else running * DISCOUNT
        discounted[step] = running
    return discounted


@ray.remote
class Player:
    """One Atari environment. It plays one episode per call."""

    def __init__(self, seed: int) -> None:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        self.env = gymnasium.make("ALE/Pong-v5", frameskip=4, repeat_action_probability=0.0)
        self.rng = np.random.default_rng(seed)
        self.seed: int | None = seed

    def play(self, weights: Weights) -> tuple[Weights, float, int]:
        """(gradient, sum of rewards, steps) of one episode."""
        frame, _ = self.env.reset(seed=self.seed)
        self.seed = None
        previous = np.zeros(INPUT_SIZE, np.float32)
        inputs, hiddens, dlogits, rewards = [], [], [], []
        done = False
        while not done:
            current = preprocess(frame)
            x = current - previous
            previous = current
            up_probability, hidden = forward(weights, x)
            up = self.rng.random() < up_probability
            frame, reward, terminated, truncated, _ = self.env.step(UP if up else DOWN)
            done = terminated or truncated
            inputs.append(x)
            hiddens.append(hidden)
            # The derivative of the log probability of the action taken, by the logit.
            dlogits.append(float(up) - up_probability)
            rewards.append(float(reward))
        worth = discount_rewards(np.array(rewards))
        worth = (worth - worth.mean()) / (worth.std() + 1e-8)
        weighted = (np.array(dlogits) * worth).astype(np.float32)
        gradient = backward(weights, np.stack(inputs), np.stack(hiddens), weighted)
        return gradient, sum(rewards), len(rewards)


class RmsProp:
    """Gradient ascent, each weight's step scaled by a running mean of its squared gradients."""

    def __init__(self, weights: Weights) -> None:
        self.squares = {name: np.zeros_like(value) for name, value in weights.items()}

    def step(self, weights: Weights, gradient: Weights) -> None:
        for name, value in gradient.items():
            square = self.squares[name]
            square *= DECAY_RATE
            square += (1 - DECAY_RATE) * value**2
            weights[name] += LEARNING_RATE * value / (np.sqrt(square) + 1e-5)


def learn(num_batches: int, seed: int) -> list[float]:
    """Plays and learns; prints a line per batch and returns each batch's mean reward per episode."""
    weights = initial_weights(np.random.default_rng(seed))
    optimizer = RmsProp(weights)
    players: list[Any] = [Player.remote(seed + 1 + number) for number in range(NUM_ACTORS)]
    batch_rewards: list[float] = []
    for batch in range(1, num_batches + 1):
        started_s = time.perf_counter()
        shared = ray.put(weights)
        gradient = {name: np.zeros_like(value) for name, value in weights.items()}
        rewards, steps = 0.0, 0
        pending = [player.play.remote(shared) for player in players]
        while pending:
            (ready,), pending = ray.wait(pending, num_returns=1)
            episode_gradient, reward, episode_steps = ray.get(ready)
            for name, value in episode_gradient.items():
                gradient[name] += value
            rewards += reward
            steps += episode_steps
        optimizer.step(weights, gradient)
        batch_rewards.append(rewards / NUM_ACTORS)
        elapsed_s = time.perf_counter() - started_s
        print(
            f"batch {batch:4d}  reward {batch_rewards[-1]:+6.1f}  steps {steps:6d}"
            f"  {steps / elapsed_s:7.0f} steps/s",
            flush=True,
        )
    return batch_rewards


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=10,
        metavar="N",
        help="batches of ten episodes to play (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the weights, the games and the moves (default: %(default)s)"
    )
    parser.add_argument(
        "--address", default=None, help="a running cluster to use, e.g. auto; default: a new one"
    )
    arguments = parser.parse_args()
    if arguments.batches < 1:
        parser.error(f"--batches must be at least 1, got {arguments.batches}")
    try:
        import ale_py  # noqa: F401
        import gymnasium  # noqa: F401
    except ImportError as error:
        print(f"{error}. Pong needs the extra `examples`: pip install 'ray_mono[examples]'", file=sys.stderr)
        return 1
    # Ten actors on however many CPUs there are: they take turns.
    ray.init(address=arguments.address, **({} if arguments.address else {"num_cpus": NUM_ACTORS}))
    rewards = learn(arguments.batches, arguments.seed)
    ray.shutdown()
    part = min(50, len(rewards))
    first, last = np.mean(rewards[:part]), np.mean(rewards[-part:])
    print(f"mean reward of the first {part} batches: {first:+.2f}, of the last {part}: {last:+.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
