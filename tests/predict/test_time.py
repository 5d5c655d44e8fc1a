"""The time of an update: what grows, what hides, what is unknown, and a case counted by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from egobench.hardware import GPUS, Gpu
from egobench.predict.rates import DEFAULT, MATMUL_FRACTIONS
from egobench.predict.setting import Machine
from egobench.predict.time import predict_time, scaled
from tests.predict.time_settings import INTERNVL3_8B, LLAMA_2_7B, batch, changed, parts_of, setting, step_s


def unknown() -> Gpu:
    return dataclasses.replace(GPUS["A100-80GB SXM"], name="of tomorrow", peak_flops={})


def test_the_products_of_a_full_update_by_hand() -> None:
    one = setting(of=batch(8, 2048), precision="bf16_pure")
    blocks = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    # The last block's feed-forward network counts with the head: only logits read it.
    flops = 3 * 2 * 8 * 2048 * (blocks - 3 * 4096 * 11008)
    at_best = flops / (312e12 * MATMUL_FRACTIONS["A100-80GB SXM"])
    assert parts_of(one)["llm"] == pytest.approx(at_best, rel=0.05)
    assert parts_of(one)["llm"] > at_best


def test_attention_by_hand() -> None:
    one = setting(of=batch(1, 8192), precision="bf16_pure")
    # Two products forward, five back, of half of the square.
    flops = 7 * 2 * 4096 * 32 * 8192**2 / 2
    assert parts_of(one)["attention"] == pytest.approx(flops / (312e12 * 0.55))


def test_parts_add_up_and_say_how_they_come_about() -> None:
    time = predict_time(setting(INTERNVL3_8B, batch(4, 2300, 24), gpus=4, strategy="fsdp", num_accumulation_steps=2))
    assert time is not None
    assert sum(part.time_s for part in time.parts) == pytest.approx(time.step_time_s)
    assert all(part.formula for part in time.parts)
    assert {part.name for part in time.parts} >= {"tower", "llm", "head", "attention", "elementwise", "recompute"}
    assert time.num_real_tokens == 4 * 2 * 4 * 2300


@pytest.mark.parametrize(
    "machine",
    [
        Machine(unknown(), 8, 200e9),
        Machine(GPUS["A100-80GB SXM"], 8, None),
        Machine(dataclasses.replace(GPUS["A100-80GB SXM"], link_bytes_per_s=None), 8, 200e9),
    ],
    ids=["peak", "network", "link"],
)
def test_what_is_not_known_has_no_number(machine: Machine) -> None:
    assert predict_time(setting(machine=machine, gpus=16, strategy="ddp")) is None


def test_a_network_matters_only_between_nodes() -> None:
    machine = Machine(GPUS["A100-80GB SXM"], 8, None)
    assert predict_time(setting(machine=machine, gpus=8, strategy="ddp")) is not None


def test_a_t4_has_no_bf16() -> None:
    machine = Machine(GPUS["T4-16GB"], 1)
    assert predict_time(setting(machine=machine)) is None
    assert predict_time(setting(machine=machine, precision="fp16")) is not None


def test_checkpointing_costs_about_a_forward_pass() -> None:
    kept = setting(of=batch(8, 2048), precision="bf16_pure")
    ratio = step_s(changed(kept, checkpointing="full")) / step_s(kept)
    assert 1.20 < ratio < 1.34
    assert parts_of(kept)["recompute"] == 0
    half = parts_of(changed(kept, checkpointing="every_2"))["recompute"]
    assert half == pytest.approx(parts_of(changed(kept, checkpointing="full"))["recompute"] / 2, rel=0.05)


def test_lora_saves_the_gradients_of_frozen_weights() -> None:
    full = setting(of=batch(8, 2048), precision="bf16_pure")
    lora = changed(full, method="lora")
    assert parts_of(lora)["llm"] == pytest.approx(parts_of(full)["llm"] * 2 / 3, rel=0.05)
    assert 1.1 < step_s(full) / step_s(lora) < 1.5
    assert parts_of(lora)["optimizer"] < parts_of(full)["optimizer"] / 50


def test_unpacking_4_bit_weights_costs_the_same_at_any_batch() -> None:
    def extra(rows: int) -> float:
        lora = setting(of=batch(rows, 2048), method="lora", precision="bf16_pure")
        return step_s(changed(lora, method="qlora")) - step_s(lora)

    assert extra(8) == pytest.approx(extra(2), rel=0.01)
    assert extra(8) > 0.05


def test_a_tower_that_is_frozen_runs_forward_only() -> None:
    images = setting(INTERNVL3_8B, batch(4, 2300, 24))
    frozen = parts_of(changed(images, method="freeze"))
    assert frozen["tower"] == pytest.approx(parts_of(images)["tower"] / 3, rel=0.1)


def test_eager_attention_is_slower_and_short_rows_do_not_mind() -> None:
    def ratio(width: int) -> float:
        flash = setting(of=batch(4, width), precision="bf16_pure")
        return step_s(changed(flash, attention="eager")) / step_s(flash)

    assert ratio(4096) > ratio(512) > 1.0
    assert ratio(4096) > 1.3


def test_a_small_batch_waits_for_the_processor() -> None:
    one = setting(of=batch(1, 64), method="lora", precision="bf16_pure")
    assert parts_of(one)["launch"] > 0
    assert parts_of(changed(one, compile="blocks"))["launch"] < parts_of(one)["launch"]
    assert parts_of(setting())["launch"] == 0


def test_the_hooks_of_sharded_parameters_keep_a_short_batch_waiting() -> None:
    waits = {one: parts_of(setting(of=batch(1, 64), strategy=one))["launch"] for one in ("zero2", "fsdp", "zero3")}
    # Nine modules a block, and a unit for each and two more, in both passes.
    assert waits["zero3"] - waits["zero2"] == pytest.approx(32 * 9 * 2 * DEFAULT.module_ops * DEFAULT.op_s)
    assert waits["fsdp"] - waits["zero2"] == pytest.approx((32 + 2) * 2 * DEFAULT.unit_ops * DEFAULT.op_s)
    assert parts_of(setting(of=batch(8, 2048), strategy="zero3"))["launch"] == 0


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp"])
def test_more_gpus_never_make_the_cluster_slower(strategy: str) -> None:
    one = setting(of=batch(8, 2048), strategy=strategy, checkpointing="full")
    before = 0.0
    for num_gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        time = predict_time(scaled(one, num_gpus))
        assert time is not None
        assert time.tokens_per_s > before
        # Sharded optimizer states save a little time; nothing else makes a GPU faster among many.
        assert time.tokens_per_s / num_gpus < 1.06 * (8 * 2048 / step_s(scaled(one, 1)))
        before = time.tokens_per_s


def test_hybrid_sharding_beats_flat_over_a_slow_network() -> None:
    slow = Machine(GPUS["A100-80GB SXM"], 8, 12.5e9)
    flat = setting(of=batch(2, 2048), machine=slow, strategy="fsdp", gpus=64, precision="bf16_pure")
    assert step_s(changed(flat, sharding="hybrid_shard")) < 0.8 * step_s(flat)


def test_keeping_weights_between_passes_saves_gathers_while_gradients_add_up() -> None:
    full = setting(of=batch(1, 512), strategy="fsdp", gpus=16, num_accumulation_steps=8)
    kept = changed(full, sharding="shard_grad_op")
    assert parts_of(kept)["exposed communication"] < parts_of(full)["exposed communication"] / 4


def test_gradients_that_add_up_are_sent_once() -> None:
    def waits(strategy: str, steps: int) -> float:
        one = setting(of=batch(1, 256), strategy=strategy, gpus=16, num_accumulation_steps=steps)
        return parts_of(one)["exposed communication"]

    assert waits("ddp", 8) < 2 * waits("ddp", 1)
    assert waits("zero1", 8) < 2 * waits("zero1", 1)
    assert waits("zero2", 8) > 4 * waits("zero2", 1)


@pytest.mark.parametrize("rate", ["matmul_scale", "bandwidth_fraction", "attention_scale"])
def test_a_faster_system_is_faster(rate: str) -> None:
    faster: dict[str, Any] = {rate: 1.1 * getattr(DEFAULT, rate)}
    usual, quick = predict_time(setting()), predict_time(setting(), dataclasses.replace(DEFAULT, **faster))
    assert usual is not None
    assert quick is not None
    assert quick.step_time_s < usual.step_time_s


def test_hopper_is_faster_than_ampere_by_less_than_its_peak() -> None:
    hopper = Machine(GPUS["H100-80GB SXM"], 8, 400e9)
    one = setting(of=batch(8, 2048), precision="bf16_pure")
    ratio = step_s(one) / step_s(dataclasses.replace(one, machine=hopper))
    assert 1.8 < ratio < 989 / 312
    fp8 = step_s(setting(of=batch(8, 2048), machine=hopper, precision="fp8"))
    bf16 = step_s(setting(of=batch(8, 2048), machine=hopper))
    assert 1.1 < bf16 / fp8 < 1.7


def test_a_slow_reader_is_what_a_step_waits_for() -> None:
    slow = dataclasses.replace(DEFAULT, image_s=10.0)
    time = predict_time(setting(INTERNVL3_8B, batch(4, 2300, 24)), slow)
    assert time is not None
    assert time.step_time_s == pytest.approx(24 * 10.0 / slow.num_threads)


def test_logits_at_supervised_positions_alone_are_a_matter_of_the_loop() -> None:
    few = setting(INTERNVL3_8B, batch(4, 2300, 24, num_supervised=300))
    aimed = changed(few, loss="chunked")
    assert parts_of(aimed)["head"] < parts_of(few)["head"] / 3
    elsewhere = dataclasses.replace(aimed, software="torchtune")
    assert parts_of(elsewhere)["head"] == pytest.approx(parts_of(few)["head"])


def test_llama_is_the_shape_it_says() -> None:
    assert sum(one.inputs * one.outputs for one in LLAMA_2_7B.llm.matrices().values()) * 32 == 6_476_005_376
