"""The same loop on a GPU."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from training_trials import in_ranks, make_trial, one_rank, run_here, run_keeping_weights

from egobench.probes.clock import NullClock
from egobench.probes.pulse import Pulse
from egobench.records.measures import StepRecord
from egobench.records.provenance import Provenance
from egobench.records.store import TrialPaths, read_document, read_lines
from egobench.records.summary import merge_steps
from egobench.records.trial import Drill, Trial
from egobench.train.errors import Diverged
from egobench.train.setup import setup
from egobench.train.stages import Stages

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_on_cuda(tmp_path: Path, precision: str) -> None:
    trial = make_trial(
        tmp_path, device="cuda", axes={"precision": precision, "optimizer": "adamw_fused"},
        recipe={"num_steps": 30}, evaluation={"num_questions": 8}, model={"name": "egotiny"},
    )  # fmt: skip
    summary, steps = run_here(trial, tmp_path)
    assert [step.step for step in steps] == list(range(30))
    assert steps[-1].loss < steps[0].loss
    for step in steps:
        parts = step.data_s + step.forward_s + step.backward_s + step.communication_s + step.optimizer_s
        assert parts == pytest.approx(step.step_time_s, rel=0.02)
        assert min(step.forward_s, step.backward_s, step.optimizer_s) > 0
    assert sum(s.step_time_s for s in steps[:-1]) == pytest.approx(
        steps[-1].started_at - steps[0].started_at, rel=0.1, abs=0.05
    )
    assert summary.peak_allocated_bytes is not None and summary.peak_reserved_bytes is not None
    assert 0 < summary.peak_allocated_bytes <= summary.peak_reserved_bytes
    assert summary.peak_rss_growth_bytes is None
    assert (summary.peak_nvml_used_bytes or 0) > summary.peak_allocated_bytes
    provenance = read_document(TrialPaths(tmp_path).provenance, Provenance)
    assert provenance is not None and provenance.gpus


def test_cpu_and_gpu_losses_agree(tmp_path: Path) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        trial = make_trial(tmp_path / device, device=device, model={"name": "egotiny"})
        losses[device] = [step.loss for step in run_here(trial, tmp_path / device)[1]]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_oom_is_torchs_own(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, device="cuda", drill=Drill(kind="oom", step=1, phase="backward"))
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        run_here(trial, tmp_path)
    assert (tmp_path / "ranks/0.jsonl").read_text().count("\n") == 1


def test_nan_is_found_at_its_step_although_it_is_read_late(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, device="cuda", recipe={"num_steps": 20}, drill=Drill(kind="nan", step=3))
    with pytest.raises(Diverged) as caught:
        run_here(trial, tmp_path)
    assert caught.value.step == 3


@pytest.mark.parametrize(
    ("precision", "rel"), [("tf32", 0.02), ("bf16", 0.05), ("bf16_pure", 0.1), ("fp16", 0.02), ("fp8", 0.2)]
)
def test_every_precision_computes_nearly_what_fp32_does(tmp_path: Path, precision: str, rel: float) -> None:
    if precision == "fp8":
        pytest.importorskip("torchao")
        if torch.cuda.get_device_capability() < (8, 9):
            pytest.skip("no FP8 units")
    losses = {}
    for name in ("fp32", precision):
        # Random weights: their loss is far from 0, so a relative bound says something.
        trial = make_trial(tmp_path / name, device="cuda", axes={"precision": name}, recipe={"num_steps": 12})
        steps = run_here(trial, tmp_path / name)[1]
        losses[name] = [step.loss for step in steps]
        assert sum(step.skipped for step in steps) <= (4 if name == "fp16" else 0)
    assert losses[precision][0] == pytest.approx(losses["fp32"][0], rel=rel)
    assert losses[precision] != losses["fp32"]  # it is another format
    assert losses[precision][-1] < losses[precision][0]


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "freeze", "last_blocks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_method_trains_and_answers(tmp_path: Path, method: str, precision: str) -> None:
    pytest.importorskip("peft")
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    trial = make_trial(
        tmp_path, device="cuda", axes={"method": method, "precision": precision},
        recipe={"num_steps": 12}, evaluation={"num_questions": 4, "before": True},
    )  # fmt: skip
    summary, steps = run_here(trial, tmp_path)
    assert steps[-1].loss < steps[0].loss
    assert 0 < summary.num_trainable_parameters < summary.num_parameters
    assert summary.before is not None and summary.after is not None


def test_fp8_under_adapters_and_compiled(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("peft")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no FP8 units")
    for name, axes in {"lora": {"method": "lora"}, "compiled": {"compile": "blocks"}}.items():
        trial = make_trial(
            tmp_path / name, device="cuda", axes={"precision": "fp8"} | axes, recipe={"num_steps": 12}
        )  # fmt: skip
        steps = run_here(trial, tmp_path / name)[1]
        assert steps[-1].loss < steps[0].loss


FORCED = {
    "sdpa_flash": "aten::_scaled_dot_product_flash_attention",
    "sdpa_cudnn": "aten::_scaled_dot_product_cudnn_attention",
    "sdpa_efficient": "aten::_scaled_dot_product_efficient_attention",
}


def ops_of_one_step(trial: Trial) -> set[str]:
    """Return the names of the operations in a forward pass."""
    work = setup(trial, one_rank("cuda"), Stages(Pulse(Path(trial.placement.base_folder) / "pulse"), NullClock()), [])
    dealt = work.feed.next()
    with profile(activities=[ProfilerActivity.CPU]) as seen, work.precision.compute(work.rank.device):
        work.loss.compute(work.model, dealt.batch, dealt.pixel_values)
    work.feed.close()
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("attention", FORCED)
def test_a_forced_kernel_is_the_one_that_runs(tmp_path: Path, attention: str) -> None:
    ops = ops_of_one_step(make_trial(tmp_path, device="cuda", axes={"precision": "bf16", "attention": attention}))
    assert FORCED[attention] in ops
    assert not ops & ({"aten::_scaled_dot_product_attention_math", *FORCED.values()} - {FORCED[attention]})


def test_packed_rows_run_in_the_variable_length_kernel(tmp_path: Path) -> None:
    axes = {"precision": "bf16", "attention": "sdpa_flash", "padding": "packed", "vision_attention": "eager"}
    ops = ops_of_one_step(make_trial(tmp_path, device="cuda", axes=axes))
    assert "torch_attn::_varlen_attn" in ops and FORCED["sdpa_flash"] not in ops


@pytest.mark.parametrize("padding", ["dynamic", "bucketed", "packed"])
@pytest.mark.parametrize("attention", ["sdpa", *FORCED])
@pytest.mark.parametrize("precision", ["bf16", "bf16_pure"])
def test_every_kernel_trains_as_eager_does(tmp_path: Path, precision: str, attention: str, padding: str) -> None:
    found = {}
    for name, axes in {"eager": {"attention": "eager"}, "other": {"attention": attention, "padding": padding}}.items():
        axes |= {"precision": precision}
        trial = make_trial(tmp_path / name, device="cuda", axes=axes, evaluation={"num_questions": 4})
        summary, steps = run_here(trial, tmp_path / name)
        assert summary.after is not None  # answered with left padding and a cache
        found[name] = steps
    for one, other in zip(found["eager"], found["other"], strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.03)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=0.1)
        assert other.supervised_tokens == one.supervised_tokens


def test_fp32_has_the_efficient_kernel(tmp_path: Path) -> None:
    losses = {}
    for attention in ("eager", "sdpa_efficient"):
        trial = make_trial(tmp_path / attention, device="cuda", axes={"attention": attention, "padding": "packed"})
        losses[attention] = [step.loss for step in run_here(trial, tmp_path / attention)[1]]
    assert losses["sdpa_efficient"] == pytest.approx(losses["eager"], rel=1e-3)


@pytest.mark.parametrize("padding", ["dynamic", "packed"])
def test_flex_trains_as_eager_does(tmp_path: Path, padding: str) -> None:
    losses = {}
    for attention in ("eager", "flex"):
        axes = {"precision": "bf16", "attention": attention, "vision_attention": "sdpa", "padding": padding}
        trial = make_trial(tmp_path / attention, device="cuda", axes=axes)
        losses[attention] = [step.loss for step in run_here(trial, tmp_path / attention)[1]]
    assert losses["flex"] == pytest.approx(losses["eager"], rel=0.03)


@pytest.mark.parametrize("attention", ["eager", "sdpa_flash"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_flops_are_what_a_gpu_runs(tmp_path: Path, attention: str, checkpointing: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from egobench.probes.flops import executed_size

    axes = {"precision": "bf16", "attention": attention, "checkpointing": checkpointing}
    trial = make_trial(tmp_path, device="cuda", axes=axes)
    stages = Stages(Pulse(TrialPaths(tmp_path).rank_pulse(0)), NullClock())
    work = setup(trial, one_rank("cuda"), stages, [])
    dealt = work.feed.next()
    with FlopCounterMode(display=False) as counted:
        with work.precision.compute(work.rank.device):
            loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values)
        work.strategy.backward(loss)
    work.feed.close()
    assert work.flops.flops is not None
    executed = work.flops.flops.executed(executed_size(dealt.batch, is_plain=True))
    assert executed == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_utilisation_and_parts_of_the_peak(tmp_path: Path) -> None:
    from egobench.hardware import gpu_of_device
    from egobench.records.rank import RankReport
    from egobench.records.summary import merge_steps, summarise

    axes = {"precision": "bf16", "optimizer": "adamw_fused", "micro_batch_size": 16}
    trial = make_trial(tmp_path, device="cuda", axes=axes, recipe={"num_steps": 12})
    summary, steps = run_here(trial, tmp_path)
    split = summary.memory
    assert split is not None and summary.peak_allocated_bytes is not None
    model = 4 * summary.num_parameters
    assert split.parameters_bytes == pytest.approx(model, rel=0.01)
    assert split.optimizer_bytes == pytest.approx(2 * model, rel=0.01)
    assert split.activations_bytes > model
    parts = (split.parameters_bytes, split.gradients_bytes, split.optimizer_bytes, split.activations_bytes)
    assert sum(parts) + split.other_bytes == summary.peak_allocated_bytes
    assert split.other_bytes > 0 and split.host_bytes == 0
    known = gpu_of_device(torch.cuda.get_device_name())
    assert summary.peak_flops == (known.peak("bf16") if known is not None else None)
    measures = summarise(merge_steps([steps]), [RankReport(rank=0, outcome="ok", at=0.0, summary=summary)])
    assert measures is not None and measures.model_flops_per_s is not None
    if known is not None:
        assert measures.mfu is not None and measures.hfu is not None
        assert 0 < measures.mfu < measures.hfu < 1


def test_a_profiled_step_on_a_gpu(tmp_path: Path) -> None:
    import gzip
    import json

    from egobench.probes.kernels import KINDS, STEP, kernels_of
    from egobench.spec.keep import Profile

    axes = {"precision": "bf16", "optimizer": "adamw_fused", "micro_batch_size": 16}
    trial = make_trial(tmp_path, device="cuda", axes=axes, recipe={"num_steps": 12})
    summary, steps = run_here(trial.model_copy(update={"profile": Profile(steps=(6, 7))}), tmp_path)
    assert [step.step for step in steps if step.excluded] == [6, 7, 8]
    kernels = summary.kernels
    assert kernels is not None and kernels.num_steps == 2
    assert min(kernels.matmul_s, kernels.attention_s, kernels.elementwise_s, kernels.optimizer_s) > 0
    assert kernels.communication_s == 0 and kernels.idle_s > 0
    trace = json.loads(gzip.decompress((tmp_path / "profile/trace-6.json.gz").read_bytes()))
    assert any(event.get("cat") == "kernel" for event in trace["traceEvents"])
    assert kernels == kernels_of([trace])
    steps_us = sum(e["dur"] for e in trace["traceEvents"] if e["name"] == STEP and e.get("cat") == "user_annotation")
    total_s = sum(getattr(kernels, f"{kind}_s") for kind in KINDS) + kernels.idle_s
    # The device may be done later than the host.
    assert 2 * total_s >= 0.99e-6 * steps_us


def test_marks_for_nvidias_profilers_disturb_nothing(tmp_path: Path) -> None:
    from egobench.spec.keep import Profile

    trial = make_trial(tmp_path, device="cuda").model_copy(update={"profile": Profile(steps=(1, 3), tool="nsys")})
    summary, steps = run_here(trial, tmp_path)
    assert summary.kernels is None and len(steps) == 4
    assert (tmp_path / "profile/replay.sh").exists()


def test_the_worst_case_runs_out_of_memory_before_the_first_step(tmp_path: Path) -> None:
    axes = {"micro_batch_size": 512, "attention": "eager"}
    trial = make_trial(tmp_path, device="cuda", axes=axes, data={"num_train": 512})
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(256 * 2**20 / total)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="the worst-case micro-batch, tried before training"):
            run_here(trial, tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not (tmp_path / "ranks/0.jsonl").exists()


def test_the_largest_micro_batch_of_a_small_gpu(tmp_path: Path) -> None:
    axes = {"micro_batch_size": "max", "attention": "eager"}
    trial = make_trial(tmp_path, device="cuda", axes=axes, data={"num_train": 2048})
    total = torch.cuda.get_device_properties(0).total_memory
    # The allocator refuses long before the device is full: the errors are real ones.
    torch.cuda.set_per_process_memory_fraction(512 * 2**20 / total)
    try:
        summary, steps = run_here(trial, tmp_path)
        assert summary.micro_batch_size is not None and 1 < summary.micro_batch_size < 2048
        assert {step.num_samples for step in steps} == {summary.micro_batch_size}
        assert (summary.peak_allocated_bytes or 0) > 128 * 2**20
        again = make_trial(tmp_path, device="cuda", axes=axes, data={"num_train": 2048}, seed=1)
        assert run_here(again, tmp_path / "again")[0].micro_batch_size == summary.micro_batch_size
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_trial_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """Some kernels sum in any order, so losses agree within rounding."""
    from resuming import attempt, lines_of, saving_trial

    more = {"device": "cuda", "axes": {"precision": "bf16"}, "recipe": {"num_steps": 12}}
    trial = saving_trial(tmp_path, **more)
    attempt(trial, tmp_path / "whole", save_after=[5], rank=one_rank("cuda"))
    attempt(trial, tmp_path / "cut", save_after=[5], cut=("backward", 8), rank=one_rank("cuda"))
    summary, _ = attempt(trial, tmp_path / "cut", rank=one_rank("cuda"))
    assert summary.resumed_at == (6,)
    whole, cut = lines_of(tmp_path / "whole"), lines_of(tmp_path / "cut")
    assert [step.step for step in cut] == list(range(12))
    assert [step.loss for step in cut] == pytest.approx([step.loss for step in whole], rel=1e-2)
    assert cut[6].excluded == "resumed"
    assert summary.energy_j is None  # the earlier attempt's share is not on record


def test_a_state_that_diverged_is_not_saved(tmp_path: Path) -> None:
    """Losses are read late on a GPU, but before anything is saved."""
    from resuming import attempt, saving_trial

    from egobench.records.checkpoint import complete_checkpoints

    more = {"device": "cuda", "recipe": {"num_steps": 12}, "drill": Drill(kind="nan", step=4)}
    trial = saving_trial(tmp_path, **more)
    with pytest.raises(Diverged):
        attempt(trial, tmp_path, save_after=[1, 4], rank=one_rank("cuda"))
    assert [found.step for _, found in complete_checkpoints(TrialPaths(tmp_path).checkpoints)] == [2]


SHARDED: dict[str, dict[str, object]] = {
    "fsdp": {"strategy": "fsdp"},
    "fsdp_offloaded": {"strategy": "fsdp", "offload": "parameters"},
    "fsdp_bf16": {"strategy": "fsdp", "precision": "bf16"},
    "fsdp_fp16": {"strategy": "fsdp", "precision": "fp16"},
    "zero1": {"strategy": "zero1"},
    "zero2": {"strategy": "zero2", "num_accumulation_steps": 2, "micro_batch_size": 2},
    "zero2_offloaded": {"strategy": "zero2", "offload": "optimizer"},
    "zero2_fp16": {"strategy": "zero2", "precision": "fp16"},
    "zero3": {"strategy": "zero3"},
    "zero3_offloaded": {"strategy": "zero3", "offload": "parameters"},
    "zero3_bf16": {"strategy": "zero3", "precision": "bf16"},
}


def losses_in_ranks(axes: dict[str, object], num_ranks: int, folder: Path) -> list[float]:
    if str(axes["strategy"]).startswith("zero"):
        pytest.importorskip("deepspeed")
    own = {"gpus": num_ranks, **axes}
    asked = {"num_questions": 9, "batch_size": 4}
    trial = make_trial(folder, device="cuda", axes=own, model={"name": "egotiny"}, evaluation=asked)
    body = functools.partial(run_keeping_weights, trial)
    said = in_ranks(num_ranks, folder, body, timeout_s=170, device="cuda")
    assert all(isinstance(one, tuple) for one in said), said
    lines = [read_lines(TrialPaths(folder).rank_steps(rank), StepRecord) for rank in range(num_ranks)]
    assert all(record.communication_s > 0 for own_lines in lines for record in own_lines)
    return [step.loss for step in merge_steps(lines)]


def losses_alone(folder: Path) -> list[float]:
    return [step.loss for step in run_here(make_trial(folder, device="cuda", model={"name": "egotiny"}), folder)[1]]


@pytest.mark.parametrize("name", SHARDED)
def test_sharding_with_nccl_is_the_training_of_one_gpu(name: str, tmp_path: Path) -> None:
    alone, found = losses_alone(tmp_path / "alone"), losses_in_ranks(SHARDED[name], 1, tmp_path)
    if "16" in name:
        assert found[0] == pytest.approx(alone[0], rel=0.05)
    else:
        assert found == pytest.approx(alone, rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["fsdp", "fsdp_offloaded", "zero1", "zero2_offloaded", "zero3"])
def test_sharding_over_two_gpus(name: str, tmp_path: Path) -> None:
    alone = losses_alone(tmp_path / "alone")
    assert losses_in_ranks({"micro_batch_size": 2, **SHARDED[name]}, 2, tmp_path) == pytest.approx(alone, rel=1e-3)
