"""What is measured: one line per step and rank, and the summary of a trial. SI units and bytes."""

from __future__ import annotations

from typing import Literal

from egobench.spec.strict import Record

Excluded = Literal["", "profiled", "resumed", "saved"]


class Step(Record):
    """What is known of one optimizer update."""

    step: int
    step_time_s: float
    """Wall time of the whole update; evaluation, checkpointing and profiling never count."""
    data_s: float
    """Waiting for the batch and moving it to the device."""
    forward_s: float
    backward_s: float
    """Gradient computation, without the communication that it did not hide."""
    communication_s: float
    """Exposed communication: from the last gradient's readiness to the end of its reduction."""
    optimizer_s: float
    """Clipping, update and zeroing."""
    loss: float
    """Mean over the supervised tokens."""
    grad_norm: float
    """Global norm before clipping."""
    learning_rate: float
    num_samples: int
    image_tokens: int
    text_tokens: int
    """Tokens that are neither image tokens nor padding, supervised ones included."""
    supervised_tokens: int
    padding_tokens: int
    peak_allocated_bytes: int
    """CUDA: max_memory_allocated so far. CPU: peak RSS so far minus the RSS before the model was built."""
    peak_reserved_bytes: int | None = None
    """CUDA: max_memory_reserved so far."""
    model_flops: float = 0.0
    """What the update needs: real tokens, logits of supervised ones, nothing twice (`egobench/predict/flops.py`).

    0: not known."""
    hardware_flops: float = 0.0
    """What is executed for it: padding and recomputed activations too."""
    excluded: Excluded = ""
    """Why the step is in no timing."""
    skipped: bool = False
    """The loss scaler skipped the update, because a gradient overflowed (fp16)."""


class StepRecord(Step):
    """An update as one rank saw it: a line of `ranks/<rank>.jsonl`."""

    started_at: float = 0.0
    """Unix time, s."""


class MergedStep(Step):
    """An update over all ranks, a line of `steps.jsonl`: slowest rank's times, summed counts, largest peaks."""

    steady: bool = False
    """Inside the steady-state window that throughput is computed over."""


class MemorySplit(Record):
    """What the peak of a rank consists of, in bytes."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """What the forward pass of a micro-step leaves for the backward pass."""
    other_bytes: int
    """The rest of the peak: temporaries, buckets, gathered parameters; on a CPU also allocator and libraries."""
    host_bytes: int = 0
    """Parameters and optimizer states of a GPU's rank that are kept in host memory; no part of the peak."""


class Kernels(Record):
    """Where the time of profiled steps went, seconds per step, by kind of kernel."""

    num_steps: int
    matmul_s: float
    attention_s: float
    elementwise_s: float
    communication_s: float
    optimizer_s: float
    other_s: float
    idle_s: float
    """The device waited for the host; on a CPU: outside any operator."""
    top: tuple[tuple[str, float], ...] = ()
    """The kernels that took longest: name, seconds per step."""


class Score(Record):
    """EM and F1 of some questions, SQuAD v2 rule, in points of 0-100."""

    num_questions: int
    em: float
    em_low: float
    """Bootstrap over questions, 95 %."""
    em_high: float
    f1: float
    f1_low: float
    f1_high: float


class CategoryScore(Score):
    """Accuracy over the questions of one category."""

    category: str


class Answers(Score):
    """Accuracy over the validation questions, and what it took to ask them."""

    eval_time_s: float
    generated_tokens: int


class Measures(Record):
    """The summary of a trial, derived from its step lines by `records/summary.py`."""

    num_steps: int
    steady_first_step: int
    """First step of the steady-state window; earlier steps are warm-up."""
    num_steady_steps: int
    step_time_s: float
    """Mean over the window of the slowest rank's step."""
    step_time_p50_s: float
    step_time_p95_s: float
    data_s: float
    forward_s: float
    backward_s: float
    communication_s: float
    optimizer_s: float
    tokens_per_s: float
    """Effective: image and text tokens, all ranks, no padding."""
    total_tokens_per_s: float
    """With padding."""
    samples_per_s: float
    supervised_tokens_per_s: float
    image_tokens: int
    """Sum over the window, all ranks; so are the next three."""
    text_tokens: int
    supervised_tokens: int
    padding_tokens: int
    peak_allocated_bytes: int | None
    """Largest over ranks; None on a CPU site."""
    peak_reserved_bytes: int | None
    peak_nvml_used_bytes: int | None
    peak_rss_growth_bytes: int | None
    """CPU sites: peak RSS minus the RSS before the model was built, largest over ranks."""
    energy_j: float | None
    """GPU energy over the window, all ranks; None without NVML."""
    power_w: float | None
    gpu_utilisation: float | None
    """Mean over the window, 0-1."""
    num_parameters: int
    num_trainable_parameters: int
    first_loss: float
    final_loss: float
    model_flops_per_s: float | None = None
    """All ranks, over the window; None where the formula does not know the model."""
    mfu: float | None = None
    """Model FLOP/s over the datasheet's peak of the precision, 0-1; None on unknown hardware."""
    hfu: float | None = None
    """The same for the FLOPs that were executed, padding and recomputation included."""
    memory: MemorySplit | None = None
    """Of the rank with the largest peak."""
    kernels: Kernels | None = None
    """Of the first rank's profiled steps."""
    micro_batch_size: int | None = None
    """What `max` came to; None where the matrix gave a number."""
    num_skipped_steps: int = 0
    """Updates that the loss scaler skipped."""
    resumed_at: tuple[int, ...] = ()
    """Steps at which a later attempt went on."""
    before: Answers | None = None
    after: Answers | None = None

    @property
    def peak_memory_bytes(self) -> int | None:
        """Return the peak that the site can measure: allocated on a GPU, RSS growth on a CPU."""
        return self.peak_allocated_bytes if self.peak_allocated_bytes is not None else self.peak_rss_growth_bytes
