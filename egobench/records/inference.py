"""What is measured of a model that answers: the request to the measuring process, and its result. SI units, bytes."""

from __future__ import annotations

from typing import Any, Literal

from egobench.records.measures import Answers, CategoryScore
from egobench.spec.inference import InferenceSpec, Runtime
from egobench.spec.strict import Record


class QuestionsRequest(Record):
    """Validation questions to ask beside the timing."""

    data: dict[str, Any]
    """`data:` of the workload, its path absolute."""
    image_px: int
    max_length: int
    """Longest sequence in tokens, as training had it: it decides which questions are left out."""
    num_questions: int | None = None
    batch_size: int = 32
    max_new_tokens: int = 16
    cache_folder: str
    predictions: str
    """File that gets a line for every answer."""


class InferenceRequest(Record):
    """What `python -m egobench.infer REQUEST.json` does."""

    runtime: Runtime
    folder: str
    """What the runtime's `prepare` wrote."""
    result: str
    """File that gets the `InferenceResult`."""
    kind: str = "as_trained"
    """Of the variant: how close its outputs have to be to the reference's."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What is computed in where weights are not quantized; onnxruntime computes in float32."""
    inference: InferenceSpec | None = InferenceSpec()
    """None: only the questions."""
    reference: str | None = None
    """File of outputs to compare with, written by the row that others are compared with."""
    write_reference: str | None = None
    """File that gets the outputs of this row."""
    questions: QuestionsRequest | None = None


class Distribution(Record):
    """Percentiles of what was measured, and every sample of it."""

    p50: float
    p90: float
    p99: float
    """The largest sample where there are fewer than 100."""
    samples: tuple[float, ...]


class MemoryPeak(Record):
    """Peak memory since the phase began; what the device does not have is None."""

    peak_rss_growth_bytes: int | None = None
    """CPU: peak resident set minus that before the model was loaded, with all libraries imported."""
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None


class OutputCheck(Record):
    """How the outputs compare with the reference's: a fast answer that is wrong is no answer."""

    num_tokens: int
    """Greedy tokens compared, all rows together."""
    num_equal_tokens: int
    """Of them, those before the first difference in their row."""
    prefill_error: float
    """Relative L2 error of the logits after the prompt."""
    decode_error: float
    """The same over the decoding steps, each given the reference's tokens."""
    agrees: bool
    """Both errors are finite and at most what the kind is allowed (`InferenceSpec.logits_limit`)."""


class BatchSpeed(Record):
    """Requests answered together, times in seconds of the whole batch."""

    batch_size: int
    num_prompt_tokens: int
    num_image_tokens: int
    """Part of the prompt."""
    num_new_tokens: int
    num_repeats: int
    num_warmup: int
    warmup_s: float
    """Spent on the runs that are left out."""
    image_encoding_s: Distribution
    """Pictures to features: vision tower and projector."""
    prefill_s: Distribution
    """Prompt and features to the first token."""
    time_to_first_token_s: Distribution
    """Image encoding and prefill."""
    decode_step_s: Distribution
    """One sample a step: what the next token of every row takes."""
    time_per_output_token_s: Distribution
    """One sample a run: mean decoding step."""
    request_s: Distribution
    prefill_tokens_per_s: Distribution
    """Prompt tokens of all rows over the prefill, image encoding left out."""
    decode_tokens_per_s: Distribution
    """Tokens of all rows over the time per output token."""
    tokens_per_s: Distribution
    """New tokens of all rows over the whole run."""
    requests_per_s: Distribution
    memory: MemoryPeak
    energy_j: float | None = None
    """Of the GPU, a timed run on average; None without NVML, and on a CPU."""
    energy_per_token_j: float | None = None
    outputs: OutputCheck | None = None
    """None where there was nothing to compare with."""


class InferenceMeasures(Record):
    """A model in a runtime, measured in a process of its own."""

    runtime: Runtime
    device: str
    dtype: str
    threads: int
    load_time_s: float
    """From the folder to a session that answers; compilation on first use is in the warm-up."""
    size_on_disk_bytes: int
    """Weights and graphs; tokenizer and settings left out."""
    load_memory: MemoryPeak
    load_average_1min: float
    """Of the machine when timing began: figures taken beside other work are told apart."""
    batches: tuple[BatchSpeed, ...]

    @property
    def agrees(self) -> bool | None:
        """Whether outputs agree with the reference at every batch size; None where that is not known."""
        checks = [batch.outputs.agrees for batch in self.batches if batch.outputs is not None]
        return all(checks) if checks else None


class InferenceResult(Record):
    """What the measuring process leaves."""

    request: InferenceRequest
    measures: InferenceMeasures | None = None
    answers: Answers | None = None
    categories: tuple[CategoryScore, ...] = ()
    versions: dict[str, str] = {}
    """Of the runtime's packages."""
