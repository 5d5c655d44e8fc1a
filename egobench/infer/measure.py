"""Measure a session: image encoding, prefill and every decoding step apart, at each batch size."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from egobench.infer.folder import size_on_disk_bytes
from egobench.infer.inputs import Inputs
from egobench.infer.reference import Reference, check
from egobench.infer.session import Ids, Session
from egobench.probes.device import GpuSampler, sampler_of
from egobench.probes.memory import MemoryProbe, Peak
from egobench.records.inference import BatchSpeed, Distribution, InferenceMeasures, InferenceRequest, MemoryPeak
from egobench.spec.inference import InferenceSpec


@dataclass(frozen=True)
class Run:
    """The clock readings of one answered batch, s."""

    began: float
    """Unix time."""
    encoded_s: float
    """From the beginning; so are the next two."""
    first_token_s: float
    steps_s: tuple[float, ...]
    """When each further token was there."""
    tokens: Ids = field(repr=False)
    """int64 [rows, new tokens]."""

    @property
    def request_s(self) -> float:
        return (self.first_token_s, *self.steps_s)[-1]

    @property
    def step_times_s(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise((self.first_token_s, *self.steps_s))]


def run_once(session: Session, inputs: Inputs, num_new_tokens: int, end_token_id: int | None = None) -> Run:
    """Answer one batch greedily, reading the clock in between: to a fixed length, or until every row says the end."""
    began, start = time.time(), time.perf_counter()
    features = session.encode_images(inputs.pixels)
    session.wait()
    encoded_s = time.perf_counter() - start
    tokens = session.greedy(session.prefill(inputs.ids, features, room=num_new_tokens))
    first_s = time.perf_counter() - start
    made, steps = [tokens], list[float]()
    for _ in range(num_new_tokens - 1):
        if end_token_id is not None and (tokens == end_token_id).all():
            break
        tokens = session.greedy(session.decode(tokens))
        steps.append(time.perf_counter() - start)
        made.append(tokens)
    return Run(began, encoded_s, first_s, tuple(steps), np.stack(made, axis=1))


def distribution(samples: Sequence[float]) -> Distribution:
    """Return percentiles beside the samples; each percentile is one of them."""
    p50, p90, p99 = np.percentile(samples, (50, 90, 99), method="higher").tolist()
    return Distribution(p50=p50, p90=p90, p99=p99, samples=tuple(map(float, samples)))


def measure(
    session: Session,
    inputs: Inputs,
    how: InferenceSpec,
    *,
    probe: MemoryProbe | None = None,
    sampler: GpuSampler | None = None,
    reference: Reference | None = None,
    max_logits_error: float | None = None,
) -> tuple[BatchSpeed, ...]:
    """Measure every batch size, and compare each with the reference where there is one.

    Args:
        session: Loaded.
        inputs: At least as many rows as the largest batch.
        how: Sizes and repeats.
        probe: Made before the session was loaded.
        sampler: Of the session's GPU.
        reference: The parent's outputs on the same inputs.
        max_logits_error: What counts as the same model; default: what a quantized one is allowed.
    """
    limit = how.max_logits_error if max_logits_error is None else max_logits_error
    batches: list[BatchSpeed] = []
    for size in how.batch_sizes:
        part = inputs.first(size)
        batch, tokens = _measure(session, part, how, probe, sampler)
        outputs = check(session, part, tokens, reference, limit) if reference is not None else None
        batches.append(batch.model_copy(update={"outputs": outputs}))
    return tuple(batches)


def _measure(
    session: Session,
    inputs: Inputs,
    how: InferenceSpec,
    probe: MemoryProbe | None,
    sampler: GpuSampler | None,
) -> tuple[BatchSpeed, Ids]:
    """Return the figures of a batch size, and the tokens of the last run."""
    if probe is not None:
        probe.reset()
    before = time.perf_counter()
    for _ in range(how.num_warmup):
        run_once(session, inputs, how.num_new_tokens)
    warmup_s = time.perf_counter() - before
    runs = [run_once(session, inputs, how.num_new_tokens) for _ in range(how.num_repeats)]
    peak = probe.peak() if probe is not None else None
    rows, width = inputs.ids.shape
    energy_j = _energy_j(sampler, runs)
    step_s = [float(np.mean(run.step_times_s)) for run in runs]
    prefill_s = [run.first_token_s - run.encoded_s for run in runs]

    def over(amount: float, seconds: Sequence[float]) -> Distribution:
        return distribution([amount / one for one in seconds])

    made = BatchSpeed(
        batch_size=rows,
        num_prompt_tokens=width,
        num_image_tokens=session.facts.num_image_tokens,
        num_new_tokens=how.num_new_tokens,
        num_repeats=how.num_repeats,
        num_warmup=how.num_warmup,
        warmup_s=warmup_s,
        image_encoding_s=distribution([run.encoded_s for run in runs]),
        prefill_s=distribution(prefill_s),
        time_to_first_token_s=distribution([run.first_token_s for run in runs]),
        decode_step_s=distribution([step for run in runs for step in run.step_times_s]),
        time_per_output_token_s=distribution(step_s),
        request_s=distribution([run.request_s for run in runs]),
        prefill_tokens_per_s=over(rows * width, prefill_s),
        decode_tokens_per_s=over(rows, step_s),
        tokens_per_s=over(rows * how.num_new_tokens, [run.request_s for run in runs]),
        requests_per_s=over(rows, [run.request_s for run in runs]),
        memory=memory_peak(peak),
        energy_j=energy_j,
        energy_per_token_j=energy_j / (rows * how.num_new_tokens) if energy_j is not None else None,
    )
    return made, runs[-1].tokens


def _energy_j(sampler: GpuSampler | None, runs: Sequence[Run]) -> float | None:
    if sampler is None:
        return None
    spans = [(run.began, run.began + run.request_s) for run in runs]
    energy_j = sampler.usage_of(spans).energy_j
    return energy_j / len(runs) if energy_j is not None else None


def memory_peak(peak: Peak | None) -> MemoryPeak:
    """Name a peak by what it is of."""
    if peak is None:
        return MemoryPeak()
    if peak.reserved_bytes is None:
        return MemoryPeak(peak_rss_growth_bytes=peak.allocated_bytes)
    return MemoryPeak(peak_allocated_bytes=peak.allocated_bytes, peak_reserved_bytes=peak.reserved_bytes)


@dataclass(frozen=True)
class Opened:
    """A session, and what opening it took."""

    session: Session
    probe: MemoryProbe
    load_time_s: float
    load_memory: MemoryPeak


def opened(make: Callable[[], Session], probe: MemoryProbe) -> Opened:
    """Open a session, watched by a probe that was made just before."""
    began = time.perf_counter()
    session = make()
    session.wait()
    load_time_s = time.perf_counter() - began
    return Opened(session, probe, load_time_s, memory_peak(probe.peak()))


def measure_opened(
    opening: Opened, inputs: Inputs, request: InferenceRequest, threads: int, reference: Reference | None
) -> InferenceMeasures:
    """Measure what a request asks for."""
    how = request.inference or InferenceSpec()
    load_average = os.getloadavg()[0]
    sampler = sampler_of(torch.device(request.device))
    try:
        batches = measure(
            opening.session, inputs, how, probe=opening.probe, sampler=sampler, reference=reference,
            max_logits_error=how.logits_limit(request.kind, request.dtype),
        )  # fmt: skip
    finally:
        if sampler is not None:
            sampler.stop()
    return InferenceMeasures(
        runtime=request.runtime,
        device=request.device,
        dtype=request.dtype,
        threads=threads,
        load_time_s=opening.load_time_s,
        size_on_disk_bytes=size_on_disk_bytes(Path(request.folder)),
        load_memory=opening.load_memory,
        load_average_1min=load_average,
        batches=batches,
    )
