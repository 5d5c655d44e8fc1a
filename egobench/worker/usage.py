"""Keeps `usage.json`: what the time of an allocation's GPUs goes into."""

from __future__ import annotations

import time

import psutil

from egobench.records.allocation import Allocation, AllocationPaths, Start
from egobench.records.checkpoint import complete_checkpoints
from egobench.records.measures import MergedStep, StepRecord
from egobench.records.outcome import Outcome
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, read_document, read_lines, write_document
from egobench.records.summary import merge_steps
from egobench.records.usage import Span, Usage


class Meter:
    """Adds up one start of an allocation; written before and after each trial and at the end."""

    def __init__(self, paths: AllocationPaths, allocation: Allocation, start: Start) -> None:
        self._paths, self._num_gpus, self._start = paths, allocation.num_gpus, start
        self._began_at = psutil.Process().create_time()  # imports are part of it
        earlier = read_document(paths.usage, Usage)
        self._earlier = {span.start: span for span in (earlier.spans if earlier is not None else ())}
        self._span = Span(start=start.number, began_at=self._began_at)

    def ready(self) -> None:
        """Note that imports are over, and trials can start."""
        self._add(Span(start=self._start.number, began_at=self._began_at, startup_s=time.time() - self._began_at))
        self.write()

    def take(self, outcome: Outcome, paths: TrialPaths) -> None:
        """Take a trial that was run."""
        self._add(share_out(outcome, paths, self._span))
        self.write()

    def take_lost(self, number: int, outcome: Outcome) -> None:
        """Take a trial that an earlier start did not see the end of."""
        span = self._earlier.get(number) or Span(start=number, began_at=outcome.started_at)
        more = share_out(outcome, self._paths.sweep.trial(outcome.cell_id, outcome.trial), span)
        # That start may have counted some of it as idle, on its way out.
        counted_s = min(max(0.0, span.began_at + span.total_s - outcome.started_at), more.total_s, span.idle_s)
        self._earlier[number] = _sum(span, more).model_copy(update={"idle_s": span.idle_s - counted_s})

    def write(self, whole: bool = False) -> None:
        """Write the document as things stand now.

        Args:
            whole: Nothing follows.
        """
        spent_s = time.time() - self._began_at
        idle_s = max(0.0, spent_s - (self._span.total_s - self._span.idle_s))
        self._span = self._span.model_copy(update={"idle_s": idle_s, "whole": whole})
        spans = tuple(span for number, span in sorted(self._earlier.items()) if number != self._span.start)
        write_document(self._paths.usage, Usage(num_gpus=self._num_gpus, spans=(*spans, self._span)))

    def _add(self, more: Span) -> None:
        self._span = _sum(self._span, more)


def _sum(span: Span, more: Span) -> Span:
    names = ("measured_s", "warmup_s", "evaluation_s", "startup_s", "lost_s", "num_trials")
    return span.model_copy(update={name: getattr(span, name) + getattr(more, name) for name in names})


def spent_s(paths: AllocationPaths, before: int) -> float:
    """Return how long the starts before this one took, s: never less, though nobody saw some of them end.

    One that was killed counts until the next began, or until it had to end.
    """
    usage = read_document(paths.usage, Usage)
    spans = {span.start: span for span in (usage.spans if usage is not None else ())}
    starts = [read_document(paths.start(number), Start) for number in range(before + 1)]
    total_s = 0.0
    for number, start in enumerate(starts[:before]):
        span = spans.get(number)
        booked_s = span.total_s if span is not None else 0.0
        if start is not None and (span is None or not span.whole):
            until = [later.at for later in starts[number + 1 :] if later is not None][:1] or [time.time()]
            if start.ends_at is not None:
                until.append(start.ends_at)
            began_at = span.began_at if span is not None else start.at
            booked_s = max(booked_s, min(until) - began_at)
        total_s += booked_s
    return total_s


def share_out(outcome: Outcome, paths: TrialPaths, span: Span) -> Span:
    """Say what the seconds of one trial went into; never more than it took."""
    left_s = outcome.ended_at - outcome.started_at
    steps = _kept_steps(outcome, paths)
    if outcome.outcome != "ok":
        measured_s, warmup_s = _seconds(steps, True), _seconds(steps, False)
        found = {"measured_s": measured_s, "warmup_s": warmup_s, "lost_s": max(0.0, left_s - measured_s - warmup_s)}
        return Span(start=span.start, began_at=span.began_at, num_trials=1).model_copy(update=found)
    report = read_document(paths.rank_report(0), RankReport)
    summary = report.summary if report is not None else None
    startup_s = outcome.launch_s or 0.0
    if summary is not None and summary.began_at is not None and summary.loading_s is not None:
        # Without the evaluation that comes before the first step.
        startup_s = summary.began_at - outcome.started_at + summary.loading_s
    wanted = {
        "measured_s": _seconds(steps, True),
        "warmup_s": _seconds(steps, False),
        "evaluation_s": (summary.evaluation_s if summary is not None else None) or 0.0,
        "startup_s": startup_s,
    }
    found = {}
    for name, seconds in wanted.items():
        found[name] = max(0.0, min(seconds, left_s))
        left_s -= found[name]
    return Span(start=span.start, began_at=span.began_at, num_trials=1).model_copy(update=found)


def _kept_steps(outcome: Outcome, paths: TrialPaths) -> list[MergedStep]:
    """Return the steps of this attempt, and not of an earlier one, that count for the trial.

    All of them where it ended ok; where it was interrupted, those that the next attempt need not take again.
    """
    end = float("inf")
    if outcome.outcome != "ok":
        _, saved = next(complete_checkpoints(paths.checkpoints), (None, None))
        end = saved.step if saved is not None and outcome.interrupted else 0
    lines = [read_lines(path, StepRecord) for path in sorted(paths.ranks.glob("*.jsonl"))] if end else []
    first = read_lines(paths.rank_steps(0), StepRecord)
    own = {line.step for line in first if line.started_at >= outcome.started_at and line.step < end}
    return [step for step in read_lines(paths.steps, MergedStep) or merge_steps(lines) if step.step in own]


def _seconds(steps: list[MergedStep], steady: bool) -> float:
    return sum(step.step_time_s for step in steps if step.steady == steady)
