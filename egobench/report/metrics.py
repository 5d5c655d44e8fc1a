"""The numbers a report knows: name, unit, direction, where each is read from, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from egobench.records.measures import Answers, Measures
from egobench.report.stats import Summary
from egobench.units import significant

Reader = Callable[[Measures], float | None]
_GIB: Final = 2**30


@dataclass(frozen=True)
class Metric:
    """One column of numbers; `higher_is_better` None: a fact, not a merit."""

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    read: Reader
    scale: float = 1.0
    """Shown value = value * scale, in `shown_unit`; files always hold `unit`."""
    shown_unit: str = ""

    @property
    def header(self) -> str:
        """Return the label with the unit that people see."""
        unit = self.shown_unit or self.unit
        return f"{self.label} ({unit})" if unit else self.label

    def show(self, summary: Summary) -> str:
        """Format `value [low, high]` for a column whose header names the unit."""
        return show_summary(summary, self.scale)


def show_summary(summary: Summary, scale: float = 1.0, places: int | None = None) -> str:
    """Format `value [low, high]`, all three with the decimals that give the value three significant digits."""
    if places is None:
        places = len(significant(summary.value * scale).partition(".")[2])
    texts = [
        _show(number * scale, places) for number in (summary.value, summary.low, summary.high) if number is not None
    ]
    return texts[0] if len(texts) == 1 else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _show(number: float, places: int) -> str:
    text = f"{number:,.{places}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text


def _measure(name: str) -> Reader:
    return lambda measures: getattr(measures, name)


def _answer(when: str, name: str) -> Reader:
    def read(measures: Measures) -> float | None:
        answers: Answers | None = getattr(measures, when)
        return None if answers is None else float(getattr(answers, name))

    return read


def _share(name: str, label: str, read: Reader, higher_is_better: bool | None = True) -> Metric:
    return Metric(name, label, "1", higher_is_better, read, 100, "%")


def _trainable_share(measures: Measures) -> float | None:
    return measures.num_trainable_parameters / measures.num_parameters if measures.num_parameters else None


def _part(whole: str, name: str) -> Reader:
    """Read a part of the peak (`memory`) or of a step's time (`kernels`)."""

    def read(measures: Measures) -> float | None:
        found = getattr(measures, whole)
        return None if found is None else float(getattr(found, name))

    return read


def _kernel(name: str, label: str) -> Metric:
    return Metric(f"kernels_{name}", label, "s", None, _part("kernels", name), 1e3, "ms")


def _memory(name: str, label: str) -> Metric:
    return Metric(f"memory_{name}", label, "B", None, _part("memory", name), 1 / _GIB, "GiB")


def _per_s(name: str, label: str) -> Metric:
    return Metric(name, label, "1/s", True, _measure(name))


def _time(name: str, label: str) -> Metric:
    return Metric(name, label, "s", False, _measure(name), 1e3, "ms")


def _bytes(name: str, label: str) -> Metric:
    return Metric(name, label, "B", False, _measure(name), 1 / _GIB, "GiB")


def _points(when: str, name: str, label: str) -> Metric:
    return Metric(f"{name}_{when}", label, "points", True, _answer(when, name))


METRICS: Final[dict[str, Metric]] = {
    metric.name: metric
    for metric in (
        Metric("tokens_per_s", "Throughput", "1/s", True, _measure("tokens_per_s"), shown_unit="tokens/s"),
        _per_s("total_tokens_per_s", "Throughput with padding"),
        _per_s("samples_per_s", "Samples per second"),
        _per_s("supervised_tokens_per_s", "Supervised tokens per second"),
        Metric("model_flops_per_s", "Model FLOP/s", "1/s", True, _measure("model_flops_per_s"), 1e-12, "TFLOP/s"),
        _share("mfu", "MFU", _measure("mfu")),
        _share("hfu", "HFU", _measure("hfu"), None),
        _time("step_time_s", "Step time"),
        _time("step_time_p50_s", "Step time, median"),
        _time("step_time_p95_s", "Step time, 95th percentile"),
        _time("data_s", "Waiting for data"),
        _time("forward_s", "Forward"),
        _time("backward_s", "Backward"),
        _time("communication_s", "Exposed communication"),
        _time("optimizer_s", "Optimizer"),
        _bytes("peak_memory_bytes", "Peak memory"),
        _bytes("peak_allocated_bytes", "Peak allocated"),
        _bytes("peak_reserved_bytes", "Peak reserved"),
        _bytes("peak_nvml_used_bytes", "Peak used as NVML sees it"),
        _bytes("peak_rss_growth_bytes", "Peak RSS growth"),
        _memory("parameters_bytes", "Parameters"),
        _memory("gradients_bytes", "Gradients"),
        _memory("optimizer_bytes", "Optimizer states"),
        _memory("activations_bytes", "Activations"),
        _memory("other_bytes", "Other"),
        _kernel("matmul_s", "Matmul"),
        _kernel("attention_s", "Attention"),
        _kernel("elementwise_s", "Elementwise"),
        _kernel("communication_s", "Communication"),
        _kernel("optimizer_s", "Optimizer"),
        _kernel("other_s", "Other"),
        _kernel("idle_s", "Idle"),
        Metric("energy_j", "Energy of the window", "J", False, _measure("energy_j")),
        Metric("power_w", "Power", "W", None, _measure("power_w")),
        Metric("gpu_utilisation", "GPU utilisation", "1", None, _measure("gpu_utilisation")),
        Metric("num_parameters", "Parameters", "1", None, _measure("num_parameters")),
        Metric("num_trainable_parameters", "Trainable parameters", "1", None, _measure("num_trainable_parameters")),
        _share("trainable_share", "Trainable", _trainable_share, None),
        Metric("micro_batch_size", "Micro batch found", "1", None, _measure("micro_batch_size")),
        Metric("num_steady_steps", "Steps in the window", "1", None, _measure("num_steady_steps")),
        Metric("first_loss", "First loss", "nat", None, _measure("first_loss")),
        Metric("final_loss", "Final loss", "nat", False, _measure("final_loss")),
        _points("before", "em", "EM before"),
        _points("before", "f1", "F1 before"),
        _points("after", "em", "EM after"),
        _points("after", "f1", "F1 after"),
    )
}

SPLIT: Final = ("data_s", "forward_s", "backward_s", "communication_s", "optimizer_s")
"""The phases that a step is made of, in the order in which they happen."""
MEMORY_PARTS: Final = tuple(name for name in METRICS if name.startswith("memory_"))
"""What a peak consists of."""
COLUMNS: Final = (
    "tokens_per_s", "mfu", "step_time_s", "peak_memory_bytes", "trainable_share", "em_after", "f1_after",
)  # fmt: skip
"""The columns of the main table, where there is something to say in them."""
KERNEL_PARTS: Final = tuple(name for name in METRICS if name.startswith("kernels_"))
"""What the time of a profiled step went into."""
PARTS: Final = {
    "What the peak consists of, in the rank with the largest.": MEMORY_PARTS,
    "What a profiled step consists of, in the first rank.": KERNEL_PARTS,
}
"""Heading -> metrics that add up to a whole."""
