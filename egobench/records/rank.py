"""What one rank leaves behind: its summary, or its failure (`ranks/<rank>.json`)."""

from __future__ import annotations

from egobench.records.measures import Answers, Kernels, MemorySplit
from egobench.records.outcome import Failure, OutcomeName
from egobench.records.provenance import Binding
from egobench.records.variant import VariantMeasures
from egobench.spec.strict import Record


class RankSummary(Record):
    """What a rank that finished knows beyond its step lines."""

    num_parameters: int
    num_trainable_parameters: int
    first_step_at: float
    """Unix time at the start of the first step, s."""
    began_at: float | None = None
    """Unix time at which the rank went to work, s; it loads first."""
    loading_s: float | None = None
    """Data, model and everything else before the first step, without evaluation."""
    evaluation_s: float | None = None
    """Before and after training."""
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_nvml_used_bytes: int | None = None
    peak_rss_growth_bytes: int | None = None
    energy_j: float | None = None
    """This rank's GPU, over the steady-state window."""
    power_w: float | None = None
    gpu_utilisation: float | None = None
    memory: MemorySplit | None = None
    kernels: Kernels | None = None
    """Rank 0 only."""
    peak_flops: float | None = None
    """The datasheet's, of this rank's device at the trial's precision; None: unknown hardware."""
    micro_batch_size: int | None = None
    """What the search for `max` found."""
    resumed_at: tuple[int, ...] = ()
    before: Answers | None = None
    """Rank 0 only; so is `after`."""
    after: Answers | None = None
    variant: VariantMeasures | None = None
    """Of a variant's trial; rank 0 only."""


class RankReport(Record):
    """`ranks/<rank>.json`: written once, last."""

    rank: int
    outcome: OutcomeName
    at: float
    """Unix time, s: the first failing rank is the one with the smallest."""
    failure: Failure | None = None
    echo: bool = False
    """The failure is most likely the consequence of another rank's: a lost connection, a reduced gradient with nan."""
    summary: RankSummary | None = None
    binding: Binding | None = None
    """Where the rank was kept; None: it was not bound."""
