"""The learner's gradient is the derivative that it claims to be, and its rewards are discounted within a
rally only."""

from __future__ import annotations

import numpy as np

from examples.pong import Weights, backward, discount_rewards, forward, initial_weights, preprocess


def objective(weights: Weights, inputs: np.ndarray, ups: np.ndarray, worth: np.ndarray) -> float:
    """The sum over steps of worth * log probability of the action taken: what the learner climbs."""
    total = 0.0
    for x, up, value in zip(inputs, ups, worth, strict=True):
        probability, _ = forward(weights, x)
        total += value * np.log(probability if up else 1 - probability)
    return total


def test_the_gradient_agrees_with_finite_differences_of_the_objective() -> None:
    rng = np.random.default_rng(3)
    weights = {name: value.astype(np.float64) for name, value in initial_weights(rng, 12, 7).items()}
    inputs = rng.standard_normal((9, 12))
    ups = rng.random(9) < 0.5
    worth = rng.standard_normal(9)

    probabilities, hiddens = zip(*(forward(weights, x) for x in inputs), strict=True)
    dlogits = (ups - np.array(probabilities)) * worth
    gradient = backward(weights, inputs, np.stack(hiddens), dlogits)

    step = 1e-6
    for name, value in weights.items():
        for index in np.ndindex(value.shape):
            kept = value[index]
            value[index] = kept + step
            above = objective(weights, inputs, ups, worth)
            value[index] = kept - step
            below = objective(weights, inputs, ups, worth)
            value[index] = kept
            assert abs((above - below) / (2 * step) - gradient[name][index]) < 1e-5


def test_rewards_are_discounted_back_to_the_rally_s_start_and_no_further() -> None:
    worth = discount_rewards(np.array([0.0, 0.0, 1.0, 0.0, -1.0]))
    assert np.allclose(worth, [0.99**2, 0.99, 1.0, -0.99, -1.0])


def test_a_frame_becomes_ones_where_something_moves() -> None:
    frame = np.full((210, 160, 3), 144, np.uint8)
    frame[35:37, 0:2] = 236
    vector = preprocess(frame)
    assert vector.shape == (6400,) and vector.sum() == 1 and vector[0] == 1
