"""What a peak consists of: tensors that a rank really holds, counted once, and never more than the peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from egobench.probes.memory import Held, SplitProbe, held_by
from egobench.records.measures import MemorySplit
from egobench.records.rank import RankSummary
from tests.train.training_trials import make_trial, run_ranks, setup_here

CPU = torch.device("cpu")
MIB = 2**20
LARGE = 10**12
"""A peak that everything fits into."""
PARTS = ("parameters_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes", "other_bytes")


def held(*, parameters: Any = (), gradients: Any = (), optimizer: Any = ()) -> Held:
    return Held(list(parameters), list(gradients), list(optimizer))


def split_of(what: Held, peak: int = LARGE, device: torch.device = CPU) -> MemorySplit:
    probe = SplitProbe(device, lambda: what)
    probe.enter("optimizer")
    found = probe.split(peak)
    assert found is not None
    return found


def block(mib: int = 1) -> torch.Tensor:
    return torch.zeros(mib * MIB, dtype=torch.uint8)


def test_parts_of_a_step(tmp_path: Path) -> None:
    work = setup_here(make_trial(tmp_path, axes={"micro_batch_size": 2}))
    dealt = work.feed.next()
    for phase in ("data", "forward"):
        work.split.enter(phase)
    loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values)
    work.split.enter("backward")
    assert work.split.split(LARGE) is None  # no update yet
    work.strategy.backward(loss)
    work.split.enter("optimizer")
    work.strategy.update(1.0)
    found = work.split.split(LARGE)
    assert found is not None
    parameters = 4 * work.num_parameters
    assert found.gradients_bytes == parameters
    assert found.parameters_bytes == parameters + sum(buffer.nbytes for buffer in work.model.buffers())
    num_tensors = len(list(work.model.parameters()))
    assert found.optimizer_bytes == 2 * parameters + 4 * num_tensors  # AdamW counts its steps in a number each
    assert sum(getattr(found, part) for part in PARTS) == LARGE
    assert found.host_bytes == 0


def test_activations_are_the_largest_growth_over_a_forward_pass() -> None:
    probe = SplitProbe(CPU, lambda: held(parameters=[block()]))
    for mib in (8, 96, 16):
        probe.enter("forward")
        grown = torch.ones(mib * MIB, dtype=torch.uint8)
        probe.enter("backward")
        del grown
    between = torch.ones(300 * MIB, dtype=torch.uint8)  # in no forward pass
    probe.enter("optimizer")
    found = probe.split(LARGE)
    assert found is not None
    assert 90 * MIB < found.activations_bytes < 130 * MIB
    assert between.nbytes


@pytest.mark.parametrize("peak", [0, MIB // 2, MIB, 2 * MIB, 3 * MIB, 10 * MIB, 11 * MIB])
def test_parts_that_exceed_the_peak_are_cut_from_the_last_on(peak: int) -> None:
    """Gradients come when activations go: the peak need not have room for all of both."""
    one, two, eight = block(), block(1), block(8)
    found = split_of(held(parameters=[one], optimizer=[two], gradients=[eight]), peak)
    assert sum(getattr(found, part) for part in PARTS) == peak
    assert min(getattr(found, part) for part in PARTS) >= 0
    assert found.parameters_bytes == min(MIB, peak)
    assert found.optimizer_bytes == min(MIB, max(0, peak - MIB))
    assert found.gradients_bytes == min(8 * MIB, max(0, peak - 2 * MIB))


def test_memory_counts_once() -> None:
    whole = block(4)
    flat = whole.view(torch.float32)
    views = [flat[:100], flat[100:]]
    found = split_of(held(parameters=[whole, flat, whole], gradients=views, optimizer=[*views, block()]))
    assert (found.parameters_bytes, found.gradients_bytes, found.optimizer_bytes) == (4 * MIB, 0, MIB)
    meta = torch.zeros(MIB, device="meta")
    assert split_of(held(parameters=[meta])).parameters_bytes == 0


def test_what_lies_in_host_memory_is_no_part_of_a_gpus_peak() -> None:
    found = split_of(held(parameters=[block(2)], optimizer=[block(3)]), 100, torch.device("cuda", 0))
    assert found.host_bytes == 5 * MIB
    assert found.other_bytes == 100
    paged = block()
    paged.is_paged = True  # type: ignore[attr-defined]  # as bitsandbytes marks its paged states
    assert split_of(held(optimizer=[paged])).optimizer_bytes == 0


def test_four_bits_and_their_scales() -> None:
    nn4bit = pytest.importorskip("bitsandbytes").nn
    layer = nn4bit.Linear4bit(256, 512, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    found = split_of(held(parameters=layer.parameters())).parameters_bytes
    packed = 256 * 512 // 2
    assert packed + 256 * 512 // 64 < found < packed * 1.25  # a scale of 8 bits for 64 numbers, and scales of those


def test_eight_bit_states() -> None:
    low_bit = pytest.importorskip("torchao.optim")
    layer = nn.Linear(256, 256, bias=False)
    optimizer = low_bit.AdamW8bit(layer.parameters(), lr=1e-3)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
    for state in (optimizer.state[layer.weight],):
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = optimizer._new_buffer(layer.weight, signed=name == "exp_avg")
    found = split_of(held_by(None, layer, optimizer)).optimizer_bytes
    assert 2 * 256 * 256 < found < 2 * 256 * 256 * 1.1  # two bytes a parameter, and a scale for every 256


def test_a_strategy_may_say_what_it_holds() -> None:
    class Strategy:
        def held_tensors(self) -> Held:
            return held(parameters=[block(7)])

    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    assert split_of(held_by(Strategy(), layer, optimizer)).parameters_bytes == 7 * MIB
    assert split_of(held_by(object(), layer, optimizer)).parameters_bytes == 4 * 6


EVERYTHING, HALF = 1.0, 0.5
SPREAD = {
    "ddp": (EVERYTHING, EVERYTHING, 2 * EVERYTHING),
    "fsdp": (HALF, HALF, 2 * HALF),
    # DeepSpeed updates fp32 copies of its part, also of fp32 parameters.
    "zero1": (EVERYTHING, HALF, 3 * HALF),
    "zero2": (EVERYTHING, HALF, 3 * HALF),
    "zero3": (HALF, HALF, 3 * HALF),
}


@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp", *(pytest.param(f"zero{n}", marks=pytest.mark.slow) for n in "123")]
)
def test_a_rank_holds_its_part(tmp_path: Path, strategy: str) -> None:
    trial = make_trial(tmp_path, axes={"strategy": strategy, "gpus": 2}, recipe={"num_steps": 2})
    for summary, _ in run_ranks(trial, tmp_path, timeout_s=120):
        assert isinstance(summary, RankSummary), summary
        assert summary.memory is not None
        model = 4 * summary.num_parameters
        parts = [getattr(summary.memory, part) / model for part in PARTS[:3]]
        # Shards are padded, and small vectors stay whole under stage 3.
        assert parts == pytest.approx([SPREAD[strategy][place] for place in (0, 1, 2)], rel=0.04)
        assert sum(getattr(summary.memory, part) for part in PARTS) == summary.peak_rss_growth_bytes
        assert summary.memory.activations_bytes > MIB
        assert summary.peak_flops is None  # a CPU has no datasheet here
