"""One rank, nothing spread."""

from __future__ import annotations

from torch import nn

from egobench.errors import InvalidInput, Mistake
from egobench.train.strategies.native import NativeStrategy


class SingleStrategy(NativeStrategy):
    """The model as it is."""

    def wrap(self, model: nn.Module) -> nn.Module:
        if self.rank.num_ranks != 1:
            mistake = Mistake("axes.strategy", f"single with {self.rank.num_ranks} ranks", "allowed: gpus: 1")
            raise InvalidInput([mistake])
        return model
