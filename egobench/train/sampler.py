"""Which samples a step sees, the same for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Position:
    """How far the data has been read: a checkpoint of the sampler."""

    epoch: int
    position: int
    """Samples of this epoch that were dealt already."""


class Sampler:
    """Deals an endless row of samples, every epoch in an order of its own, in global batches."""

    def __init__(self, num_samples: int, seed: int, state: Position | None = None) -> None:
        if num_samples < 1:
            raise ValueError("a sampler needs at least one sample")
        state = state or Position(0, 0)
        self._num_samples, self._seed = num_samples, seed
        self._epoch, self._position = state.epoch, state.position
        self._order = self._permutation()

    @property
    def state(self) -> Position:
        """Return what a new sampler needs to go on from here."""
        return Position(self._epoch, self._position)

    def seek(self, state: Position) -> None:
        """Go on from a state of a sampler with the same samples and seed."""
        self._epoch, self._position = state.epoch, state.position
        self._order = self._permutation()

    def take(self, count: int) -> list[int]:
        """Return the next `count` samples; a batch may reach into the next epoch, so none is left out."""
        taken: list[int] = []
        while len(taken) < count:
            if self._position == self._num_samples:
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._permutation()
            more = self._order[self._position : self._position + count - len(taken)]
            self._position += len(more)
            taken.extend(more)
        return taken

    def _permutation(self) -> list[int]:
        order: list[int] = np.random.default_rng([self._seed, self._epoch]).permutation(self._num_samples).tolist()
        return order
