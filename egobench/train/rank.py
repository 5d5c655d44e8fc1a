"""Which process of the trial this is, and what it computes on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rank:
    """One process of a trial; the process group exists already where the trial needs one."""

    rank: int
    """0 .. num_ranks - 1, over all nodes."""
    local_rank: int
    """0 .. on this node."""
    num_ranks: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Return whether this rank writes what is written once a trial."""
        return self.rank == 0
