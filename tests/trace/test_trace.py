"""A trace allocates what the worker does, says why there is none, and is made once."""

from __future__ import annotations

import functools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tracing import really, request_of, some_batch, trial_of
from training_trials import in_ranks, make_trial
from transformers import InternVLConfig

from egobench.hardware import find_gpu
from egobench.predict.constants import DEFAULT
from egobench.predict.memory import predict_memory
from egobench.predict.models import shape_of_file
from egobench.predict.setting import Batch, Machine, Setting
from egobench.predict.shapes import ModelShape
from egobench.records.trace import Traced, TracedBatch, TraceRequest, TraceRequests
from egobench.trace import pool
from egobench.trace.identity import digest_of
from egobench.trace.storages import ROUND_BYTES
from egobench.train.material import build_model
from egobench.train.rank import Rank

BESIDE_BYTES = 8 * ROUND_BYTES
"""At most so much of small things stays from loading in a real trial: the scale and shift of its feed, generators."""
ALONE: list[dict[str, Any]] = [
    {},
    {"precision": "bf16", "attention": "eager", "padding": "max"},
    {"precision": "bf16", "method": "lora", "checkpointing": "full"},
    {"precision": "bf16", "padding": "packed", "attention": "sdpa_flash", "num_accumulation_steps": 2},
]
SLOW: list[dict[str, Any]] = [
    {"loss": "chunked", "checkpointing": "selective", "optimizer": "adamw_fused"},
    {"method": "freeze", "precision": "bf16_pure", "checkpointing": "every_2"},
    {"method": "dora", "precision": "bf16"},
    {"method": "last_blocks", "projector": "frozen", "padding": "bucketed"},
]


def name_of(axes: dict[str, Any]) -> str:
    return "-".join(map(str, axes.values())) or "plain"


def parts_of(traced: Traced) -> dict[str, dict[str, int]]:
    return {one.name: one.model_dump(exclude={"name", "other_bytes"}) for one in traced.phases}


@pytest.mark.parametrize("axes", [*ALONE, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)], ids=name_of)
def test_a_trace_of_one_rank_is_the_real_run_to_the_byte(tmp_path: Path, axes: dict[str, Any]) -> None:
    ((real, shapes),) = in_ranks(1, tmp_path, functools.partial(_real_rank, axes), timeout_s=100)
    traced = trace(tmp_path, request_of(trial_of(tmp_path, axes), shapes))
    _assert_same(traced, real)
    assert (traced.last.matmul_flops, traced.num_parameters) == (real.last.matmul_flops, real.num_parameters)


def trace(folder: Path, request: TraceRequest) -> Traced:
    """Trace in a process of its own, as in use: what libraries are made to believe would stay in other tests."""
    (traced,) = pool.trace_all(asked(folder / "traces", request, limit_s=150))
    assert not traced.reason, traced.reason
    return traced


def _assert_same(traced: Traced, real: Traced, *, spread_bytes: int = 0) -> None:
    assert parts_of(traced) == parts_of(real)
    beside = [mine.peak_bytes - own.peak_bytes for own, mine in zip(traced.phases, real.phases, strict=True)]
    assert min(beside) >= 0 and max(beside) <= BESIDE_BYTES
    assert max(beside) - min(beside) <= spread_bytes


def _real_rank(axes: dict[str, Any], folder: Path, rank: Rank) -> Any:
    return really(trial_of(folder, axes), rank)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "axes",
    [
        {"strategy": "ddp", "num_accumulation_steps": 2},
        {"strategy": "fsdp", "precision": "bf16"},
        {"strategy": "zero2", "precision": "bf16"},
        {"strategy": "zero3", "optimizer": "adamw_fused"},
    ],
    ids=name_of,
)
def test_ranks_that_are_not_there_take_what_real_ones_do(tmp_path: Path, axes: dict[str, Any]) -> None:
    axes = {"gpus": 2, "micro_batch_size": 2, **axes}
    said = in_ranks(2, tmp_path, functools.partial(_real_rank, axes), timeout_s=400)
    real, shapes = said[1]  # the rank that is traced
    # Gloo's threads let go of what they sent when they get to it: a number of one phase may last into the next one.
    _assert_same(trace(tmp_path, request_of(trial_of(tmp_path, axes), shapes)), real, spread_bytes=ROUND_BYTES)


def test_the_optimizer_holds_two_moments_of_every_parameter(tmp_path: Path) -> None:
    trial = trial_of(tmp_path, {"optimizer": "adamw_fused"})
    traced = trace(tmp_path, request_of(trial, some_batch()))
    phase = next(one for one in traced.phases if one.name == "optimizer")
    dims = build_model(trial, torch.float32, torch.device("meta")).model
    sizes = [4 * one.numel() for one in dims.parameters()]
    rounded = [-(-size // ROUND_BYTES) * ROUND_BYTES for size in sizes]
    assert phase.optimizer_bytes == sum(2 * size + ROUND_BYTES for size in rounded)  # and the number of the step
    assert phase.gradients_bytes == sum(rounded)
    assert traced.num_trainable_parameters == sum(sizes) / 4


def test_an_allocator_reserves_what_is_allocated_and_less_than_is_predicted_at_most(tmp_path: Path) -> None:
    request = request_of(trial_of(tmp_path, {"precision": "bf16", "checkpointing": "full"}), some_batch(), "cuda")
    once = trace(tmp_path, request)
    assert once.reserved_bytes is None and once.allocated_bytes is None
    replayed = trace(tmp_path, request.model_copy(update={"further": (80, 60, 96)}))
    assert replayed.reserved_bytes is not None and replayed.allocated_bytes is not None
    assert replayed.phases == once.phases
    # Blocks of more than 1 MiB that fit none may keep so much of a rest.
    assert once.peak_bytes <= replayed.allocated_bytes <= 1.1 * once.peak_bytes
    assert replayed.allocated_bytes < replayed.reserved_bytes < 2 * once.peak_bytes
    assert replayed.reserved_bytes % (2 * 2**20) == 0


def test_a_gpu_keeps_softmax_in_fp32_and_has_no_fused_kernel_for_grouped_heads_in_fp32(tmp_path: Path) -> None:
    def kept(imitates: str, **axes: Any) -> int:
        traced = trace(tmp_path, request_of(trial_of(tmp_path, axes), some_batch(), imitates))
        return traced.phases[0].activations_bytes

    assert kept("cuda", precision="bf16", attention="eager") > kept("cpu", precision="bf16", attention="eager")
    assert kept("cuda", attention="sdpa") > kept("cpu", attention="sdpa")
    assert kept("cuda", precision="bf16", attention="sdpa") == kept("cpu", precision="bf16", attention="sdpa")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_closed_form_knows_norms_of_queries_and_a_tied_head(tmp_path: Path, method: str) -> None:
    vision = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 1024}
    vision |= {"image_size": [64, 64], "patch_size": [8, 8], "norm_type": "rms_norm", "use_qk_norm": True}
    text = {"model_type": "qwen3", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8}
    text |= {"num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 1536, "vocab_size": 8192}
    InternVLConfig(vision_config=vision, text_config=text, tie_word_embeddings=True).save_pretrained(tmp_path)
    axes = {"precision": "bf16", "method": method, "attention": "sdpa_flash", "loss": "chunked"}
    trial = make_trial(tmp_path, axes=axes, model={"path": str(tmp_path)})
    batch = TracedBatch(num_rows=4, width=512, num_images=4, num_supervised=64, lengths=(512,) * 4)
    traced = trace(tmp_path, request_of(trial, batch, "cuda"))
    shape, gpu = shape_of_file(tmp_path / "config.json"), find_gpu("A100-80GB SXM")
    assert isinstance(shape, ModelShape) and shape.llm.is_tied and gpu is not None
    same = Batch(4, 512, 4, 64, 2048, 4 * 512**2)
    setting = Setting(shape, trial.cell.axes, same, same, Machine(gpu, 8))
    memory = predict_memory(setting, replace(DEFAULT, workspace_bytes=0.0))
    assert memory.allocated_bytes == pytest.approx(traced.peak_bytes, rel=0.04)


def asked(folder: Path, *requests: TraceRequest, limit_s: float = 60) -> TraceRequests:
    return TraceRequests(requests=requests, cache_folder=str(folder), num_processes=2, limit_s=limit_s)


def test_what_is_known_is_not_traced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(trial_of(tmp_path, {}), some_batch())
    longer = request_of(trial_of(tmp_path, {"num_steps": 9, "learning_rate": 0.5}), some_batch())
    first = pool.trace_all(asked(tmp_path, request, longer))
    assert first[0].peak_bytes and first[0] == first[1]
    monkeypatch.setattr(pool, "_start", lambda *_: pytest.fail("traced again"))
    assert pool.trace_all(asked(tmp_path, longer)) == first[:1]


def test_only_what_matters_makes_another_trace(tmp_path: Path) -> None:
    def digest(num_supervised: int = 20, **axes: Any) -> str:
        return digest_of(request_of(trial_of(tmp_path, axes), some_batch(num_supervised), "cuda"))

    assert digest() == digest(num_steps=7) == digest(precision="tf32") == digest(lora_rank=4)
    assert digest(attention="flash_attention_2") == digest(attention="sdpa_flash")
    assert digest(strategy="ddp", gpus=2) == digest(strategy="ddp", gpus=4)
    others = [digest(), digest(attention="eager"), digest(precision="bf16"), digest(num_supervised=21)]
    others += [digest(strategy="fsdp", gpus=2), digest(strategy="fsdp", gpus=4), digest(num_accumulation_steps=2)]
    assert len(set(others)) == len(others)


def test_a_cell_that_cannot_be_traced_says_why(tmp_path: Path) -> None:
    wanted = {"compile": "blocks", "loss": "fused_linear", "micro_batch_size": "max", "method": "qlora"}
    requests = [request_of(trial_of(tmp_path, {axis: value}), some_batch()) for axis, value in wanted.items()]
    for (axis, value), traced in zip(wanted.items(), pool.trace_all(asked(tmp_path, *requests)), strict=True):
        assert traced.reason.startswith(f"not traced: {axis} '{value}': ") and not traced.phases


def _misbehave(request: TraceRequest) -> Traced:
    what = request.cell.axes["precision"]
    if what == "bf16":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "fp16":
        time.sleep(60)
    if what == "bf16_pure":
        raise ValueError("no such thing\nand more")
    return Traced(held_bytes=1)


def test_the_pool_outlives_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "trace", _misbehave)
    formats = ("bf16", "fp16", "bf16_pure", "fp32")
    requests = [request_of(trial_of(tmp_path, {"precision": one}), some_batch()) for one in formats]
    told: list[int] = []
    found = pool.trace_all(asked(tmp_path, *requests, limit_s=8), lambda number, traced: told.append(number))
    assert [one.reason for one in found] == [
        "not traced: its process ended with signal SIGSEGV",
        "not traced: it took more than 8 s",
        "not traced: ValueError: no such thing",
        "",
    ]
    assert sorted(told) == [0, 1, 2, 3]
