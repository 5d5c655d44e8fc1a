"""Made-up measurements of variants; no number here was ever measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import write_sweep

from egobench.records.inference import BatchSpeed, Distribution, InferenceMeasures, MemoryPeak, OutputCheck
from egobench.records.measures import Answers, CategoryScore
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.store import SweepPaths, read_document, write_document
from egobench.records.sweep import Sweep
from egobench.records.variant import QuestionScores, VariantMeasures
from egobench.spec.targets import Targets

NUM_QUESTIONS = 400
CATEGORIES = ("colour", "counting", "place", "when")
CATEGORY_OF = np.arange(NUM_QUESTIONS) % len(CATEGORIES)
BECAUSE = "waits for 'eager-1', trial 0, which ended as crash: a rank raised"
LINEAGE = {"lossy": ("student", "lossy")}
TARGETS = {"size": {"at_most": 0.5}, "decode_speed": {"at_least": 1.5}, "accuracy_drop": {"below_points": 2.0}}


def spread(value: float) -> Distribution:
    return Distribution(p50=value, p90=value * 1.1, p99=value * 1.2, samples=(value,))


def speed(batch_size: int, faster: float, agrees: bool) -> BatchSpeed:
    step_s = 0.01 * batch_size**0.5 / faster
    outputs = OutputCheck(num_tokens=4, num_equal_tokens=4, prefill_error=0.0, decode_error=0.0, agrees=agrees)
    return BatchSpeed(
        batch_size=batch_size, num_prompt_tokens=64, num_image_tokens=16, num_new_tokens=8, num_repeats=2,
        num_warmup=1, warmup_s=0.1, image_encoding_s=spread(0.02), prefill_s=spread(0.03 * faster),
        time_to_first_token_s=spread(0.05), decode_step_s=spread(step_s), time_per_output_token_s=spread(step_s),
        request_s=spread(0.2), prefill_tokens_per_s=spread(64 / 0.03 / faster),
        decode_tokens_per_s=spread(batch_size / step_s), tokens_per_s=spread(8 / 0.2),
        requests_per_s=spread(5.0), memory=MemoryPeak(peak_rss_growth_bytes=2**28), outputs=outputs,
    )  # fmt: skip


def category(place: int, em: np.ndarray[Any, Any]) -> CategoryScore:
    points = 100 * float(em.mean())
    return CategoryScore(
        category=CATEGORIES[place], num_questions=len(em), em=points, em_low=points, em_high=points, f1=points,
        f1_low=points, f1_high=points,
    )  # fmt: skip


def _fate(axes: Mapping[str, Any], trial: int) -> tuple[OutcomeName, str]:
    return ("parent_failed", BECAUSE) if axes["variant"] == "orphan" else ("ok", "")


def measured(name: str, em: np.ndarray[Any, Any], *, size: int, faster: float, agrees: bool = True) -> VariantMeasures:
    points = 100 * float(em.mean())
    return VariantMeasures(
        kind="as_trained" if name == "torch" else "int8", runtime="torch", lineage=LINEAGE.get(name, (name,)),
        num_parameters=100,
        inference=InferenceMeasures(
            runtime="torch", device="cpu", dtype="float32", threads=2, load_time_s=1.0, size_on_disk_bytes=size,
            load_memory=MemoryPeak(), load_average_1min=0.1,
            batches=(speed(1, faster, agrees), speed(8, faster, agrees)),
        ),
        answers=Answers(
            num_questions=len(em), em=points, em_low=points - 1, em_high=points + 1, f1=points, f1_low=points,
            f1_high=points, eval_time_s=1.0, generated_tokens=10,
        ),
        categories=tuple(category(place, em[place == CATEGORY_OF]) for place in range(len(CATEGORIES))),
        scores=QuestionScores(
            digest="q", em=tuple(map(int, em)), f1=tuple(map(float, em)), categories=tuple(map(int, CATEGORY_OF))
        ),
    )  # fmt: skip


def write_variants(runs: Path, name: str = "synthetic") -> Path:
    """Write a sweep of five variants: one is fine, one loses too much, one answers wrongly, one never ran."""
    names = ("torch", "small", "lossy", "wrong", "orphan")
    targets = Targets.model_validate({"variants": TARGETS})
    folder = write_sweep(
        runs, {"variant": names}, name=name, trials=3, targets=targets, device="cpu", compared=(), fate=_fate
    )
    random = np.random.default_rng(0)
    right = random.random(NUM_QUESTIONS) < 0.8
    # What is lost is lost among the questions that count things.
    lossy = right & ((random.random(NUM_QUESTIONS) > 0.12) | (CATEGORY_OF != 1))
    made = {
        "torch": {"em": right, "size": 1000, "faster": 1.0},
        "small": {"em": right, "size": 300, "faster": 2.0},
        "lossy": {"em": lossy, "size": 300, "faster": 2.0},
        "wrong": {"em": right, "size": 300, "faster": 9.0, "agrees": False},
    }
    paths = SweepPaths(folder)
    plan = read_document(paths.sweep, Sweep)
    assert plan is not None
    for cell in plan.cells:
        if (name := str(cell.axes["variant"])) not in made:
            continue
        for trial in range(3):
            place = paths.trial(cell.cell_id, trial).outcome
            document = read_document(place, Outcome)
            assert document is not None
            found = measured(name, **made[name])
            write_document(place, document.model_copy(update={"measures": None, "variant": found}))
    return folder
