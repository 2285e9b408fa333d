"""Lets a small language model continue many prompts: tokenise, batch, predict in a pool of actors, results in
order.

    python batch_prediction.py [--prompts N] [--batch N] [--actors N] [--seed N]

A streaming task tokenises the prompts and yields batches as they fill. Each goes, as a reference, to
whichever actor of the pool is free. The weights lie in the object store once, and every actor reads them in
place. Results come back in the order of the prompts.

The model knows nothing: its weights are random. It is a model by its shape: embeddings, one layer of causal
attention, and a choice of the next token, in numpy.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray
from ray.util import ActorPool

WORDS = (
    "the a small old river stone bird sings falls under over bright and while night morning rain waits . ,"
).split()
PADDING = 0
WIDTH = 32
NUM_NEW_TOKENS = 6


@dataclass
class Batch:
    """Prompts of one batch, in order."""

    tokens: np.ndarray
    """One prompt per row, padded on the left."""
    lengths: list[int]


@dataclass
class Weights:
    embedding: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray

    @staticmethod
    def draw(seed: int) -> Weights:
        rng = np.random.default_rng(seed)
        embedding = rng.standard_normal((len(WORDS) + 1, WIDTH))
        query, key, value = rng.standard_normal((3, WIDTH, WIDTH)) / np.sqrt(WIDTH)
        return Weights(embedding, query, key, value)


def make_prompts(number: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(number)]


def to_batch(rows: list[list[int]]) -> Batch:
    longest = max(map(len, rows))
    tokens = np.array([[PADDING] * (longest - len(row)) + row for row in rows])
    return Batch(tokens, [len(row) for row in rows])


@ray.remote
def tokenise(prompts: list[str], batch_size: int) -> Iterator[Batch]:
    """Yields the prompts as batches; the last one may be smaller."""
    vocabulary = {word: number for number, word in enumerate(WORDS, start=1)}
    rows: list[list[int]] = []
    for prompt in prompts:
        rows.append([vocabulary[word] for word in prompt.split()])
        if len(rows) == batch_size:
            yield to_batch(rows)
            rows = []
    if rows:
        yield to_batch(rows)


def next_scores(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """How well each token would follow, for each row."""
    inputs = weights.embedding[tokens]
    # Only the last position is needed: it may look at every position before it that is no padding.
    affinity = np.einsum("bd,bnd->bn", inputs[:, -1] @ weights.query, inputs @ weights.key) / np.sqrt(WIDTH)
    affinity = np.where(tokens == PADDING, -np.inf, affinity)
    attention = np.exp(affinity - affinity.max(axis=1, keepdims=True))
    attention /= attention.sum(axis=1, keepdims=True)
    state = np.einsum("bn,bnd->bd", attention, inputs @ weights.value)
    return state @ weights.embedding.T


@ray.remote
class Predictor:
    """One copy of the model."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def reads_in_place(self) -> bool:
        """Whether the weights are those in the object store, which nobody may write to."""
        return not self._weights.embedding.flags.writeable

    def predict(self, batch: Batch) -> list[tuple[str, float]]:
        """For each prompt its continuation, and the mean score of the tokens chosen."""
        tokens = batch.tokens
        total = np.zeros(len(tokens))
        for _ in range(NUM_NEW_TOKENS):
            scores = next_scores(self._weights, tokens)
            scores[:, PADDING] = -np.inf
            chosen = scores.argmax(axis=1)
            total += scores[np.arange(len(tokens)), chosen]
            tokens = np.column_stack([tokens, chosen])
        new = tokens[:, -NUM_NEW_TOKENS:]
        texts = [" ".join(WORDS[token - 1] for token in row) for row in new]
        return [(text, float(score)) for text, score in zip(texts, total / NUM_NEW_TOKENS, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="prompts per batch (default: %(default)s)")
    parser.add_argument("--actors", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=3, help="of prompts and weights (default: %(default)s)")
    arguments = parser.parse_args()
    if min(arguments.prompts, arguments.batch, arguments.actors) < 1:
        parser.error("--prompts, --batch and --actors must be at least 1")

    ray.init(num_cpus=4)
    prompts = make_prompts(arguments.prompts, arguments.seed)
    weights = ray.put(Weights.draw(arguments.seed))
    actors = [Predictor.remote(weights) for _ in range(arguments.actors)]
    print("weights are read in place:", all(ray.get([actor.reads_in_place.remote() for actor in actors])))
    pool = ActorPool(actors)
    batches = tokenise.remote(prompts, arguments.batch)
    results = pool.map(lambda actor, batch: actor.predict.remote(batch), batches)
    predictions = [prediction for result in results for prediction in result]
    ray.shutdown()

    for prompt, (text, score) in zip(prompts, predictions, strict=True):
        print(f"{score:7.3f}  {prompt} … {text}")


if __name__ == "__main__":
    main()
