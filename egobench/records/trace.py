"""A trace: the worker's own model and update run on tensors without memory; what is asked for, and what came of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from egobench.records.trial import Cell
from egobench.spec.strict import Record


class TracedBatch(Record):
    """The micro-batch that is run: the largest one of an epoch."""

    num_rows: int = Field(ge=1)
    width: int = Field(ge=1)
    """Positions of a row, padding included."""
    num_images: int = Field(ge=0)
    """In all rows."""
    num_supervised: int = Field(ge=0)
    """Positions with a target, in all rows."""
    lengths: tuple[int, ...]
    """Tokens of each sample without padding; where samples are packed, they make up the one row."""
    is_packed: bool = False


class TraceRequest(Record):
    """One cell to trace."""

    schema_version: Literal[1] = 1
    cell: Cell
    batch: TracedBatch
    num_nodes: int = 1
    base_folder: str = "."
    """Folder that the workload's relative paths start from."""
    num_blocks: int | None = None
    """Trace so many blocks of the tower and of the LLM of a named model, for a quick look; None: all."""
    imitates: Literal["cuda", "cpu"] = "cuda"
    """Whose choice of kernels and of formats under autocast is traced."""
    further: tuple[int, ...] = ()
    """Widths of updates that are made after the first, to replay them all through CUDA's caching allocator."""


class TraceRequests(Record):
    """`REQUESTS.json`: what `python -m egobench.trace` is given."""

    schema_version: Literal[1] = 1
    requests: tuple[TraceRequest, ...]
    cache_folder: str = ".cache"
    num_processes: int = 1
    limit_s: float = 600
    """Of one trace."""


class TracedPhase(Record):
    """The largest moment of a phase, of any update but the first."""

    name: Literal["loss", "backward", "optimizer"]
    parameters_bytes: int
    """Of the model; of those that are spread over ranks, this rank's part."""
    gradients_bytes: int
    optimizer_bytes: int
    """States, and master weights where others than the model's are updated."""
    activations_bytes: int
    """What forward passes made and is still there."""
    other_bytes: int
    """Gathered parameters, buffers of collectives, temporaries of the backward pass and of the optimizer, inputs."""

    @property
    def peak_bytes(self) -> int:
        """Return what is allocated at that moment."""
        held = self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes
        return held + self.activations_bytes + self.other_bytes


class TracedCounts(Record):
    """What a piece of an update executes on a rank."""

    num_ops: int = 0
    """Operators of torch's lowest level; roughly the kernels."""
    matmul_flops: int = 0
    """Matrix products, convolutions and attention, recomputed ones included."""
    communicated_bytes: dict[str, int] = {}
    """Collective -> bytes of its whole tensor (gathered, or before it is scattered), summed over calls."""


class Traced(Record):
    """What came of a trace."""

    schema_version: Literal[1] = 1
    reason: str = ""
    """Why there is nothing: `not traced: ...`; empty where there is."""
    phases: tuple[TracedPhase, ...] = ()
    held_bytes: int = 0
    """Between two updates."""
    allocated_bytes: int | None = None
    """The counterpart of max_memory_allocated with what blocks have to spare, where a replay was asked for."""
    reserved_bytes: int | None = None
    """The counterpart of max_memory_reserved."""
    earlier: TracedCounts = TracedCounts()
    """A micro-step before the last one of an update; nothing where an update has one alone."""
    last: TracedCounts = TracedCounts()
    """The last micro-step."""
    update: TracedCounts = TracedCounts()
    """Clipping and the optimizer's step."""
    num_parameters: int = 0
    num_trainable_parameters: int = 0
    remarks: tuple[str, ...] = ()
    """Where the trace stands for something that it is not."""
    time_s: float = 0.0
    """That tracing took."""

    @property
    def peak_bytes(self) -> int:
        """Return the counterpart of max_memory_allocated, without the workspaces of libraries."""
        return max((phase.peak_bytes for phase in self.phases), default=0)

    @property
    def peak_phase(self) -> str:
        """Return the phase of the peak; empty where nothing was traced."""
        return max(self.phases, key=lambda phase: phase.peak_bytes).name if self.phases else ""
