from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from egobench.errors import InvalidInput
from egobench.hardware import GPUS
from egobench.predict.memory import explain, predict_memory, reserved_bytes, usable_bytes
from egobench.predict.setting import Batch, Machine, Setting
from egobench.predict.shapes import LlmShape, ModelShape, TowerShape, text_only
from egobench.spec.axes import AXES

TOWER = TowerShape(hidden=1024, layers=24, heads=16, ffn=4096, image_px=448, patch_px=14, channels=3)
LLM = LlmShape(hidden=1536, layers=28, heads=12, kv_heads=2, head_dim=128, ffn=8960, vocab=151674, is_tied=False)
SHAPE = ModelShape(TOWER, LLM, 0.5)
MACHINE = Machine(GPUS["A100-80GB SXM"], 8)


def setting(shape: ModelShape = SHAPE, rows: int = 2, width: int = 1024, images: int = 4, **axes: Any) -> Setting:
    point = {name: axis.default for name, axis in AXES.items()}
    point |= {"precision": "bf16", "attention": "sdpa_flash", "micro_batch_size": rows, "padding": "max", **axes}
    batch = Batch(rows, width, images * shape.tower.layers / 24, rows * 64, rows * width, rows * width**2)
    return Setting(shape, point, batch, batch, MACHINE)


def allocated(**more: Any) -> float:
    return predict_memory(setting(**more)).allocated_bytes


def part(found: Setting, moment: str, name: str) -> float:
    phases = {phase.name: phase for phase in explain(found).phases}
    return sum(one.num_bytes for one in phases[moment].parts if one.name == name)


LLM_ALONE = text_only(LLM)
NUMBERS = 28 * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960 + 2 * 1536) + 1536 + 2 * 151674 * 1536


@pytest.mark.parametrize(
    "axes, parameters, moments, gradients, temporary",
    [
        ({"precision": "fp32"}, 4, 8, 4, 4),
        ({"precision": "bf16"}, 4, 8, 4, 4),
        ({"precision": "bf16_pure"}, 2, 4, 2, 2),
        ({"precision": "bf16", "optimizer": "adamw_fused"}, 4, 8, 4, 0),
        ({"strategy": "ddp", "gpus": 4}, 4, 8, 4, 4),
        ({"strategy": "fsdp", "gpus": 4}, 4 / 4, 8 / 4, 4 / 4, 4 / 4),
        ({"strategy": "fsdp", "gpus": 8, "sharding": "hybrid_shard"}, 4 / 4, 8 / 4, 4 / 4, 4 / 4),
        # 16-bit weights, fp32 masters and two moments.
        # AdamW's copy of them, and one fp32 tensor of all gradients of a rank.
        ({"strategy": "zero1", "gpus": 4}, 2, 12 / 4, 2 / 4, 8 / 4),
        ({"strategy": "zero1", "gpus": 4, "num_accumulation_steps": 2}, 2, 12 / 4, 4 + 2, 8 / 4),
        ({"strategy": "zero2", "gpus": 4}, 2, 12 / 4, 2 / 4, 8 / 4),
        ({"strategy": "zero3", "gpus": 4}, 2 / 4, 12 / 4, 2 / 4, 8 / 4),
        ({"strategy": "zero3", "gpus": 4, "precision": "fp32"}, 4 / 4, 12 / 4, 4 / 4, 8 / 4),
        # Micro-steps add up in fp32, in a tensor that needs no copy in stage 2.
        ({"strategy": "zero2", "gpus": 4, "num_accumulation_steps": 2}, 2, 12 / 4, 4 / 4, 4 / 4),
        # An optimizer on the host takes the reduced gradients with it.
        ({"strategy": "zero2", "gpus": 4, "offload": "optimizer"}, 2, 0, 0, 0),
        ({"strategy": "zero3", "gpus": 4, "offload": "optimizer"}, 2 / 4, 0, 0, 0),
        # More than 10**9 numbers a rank: stage 3 updates so many at a time.
        ({"strategy": "zero3", "gpus": 1, "precision": "fp32"}, 4, 12, 4, 8e9 / NUMBERS),
        ({"strategy": "zero3", "gpus": 4, "num_accumulation_steps": 2}, 2 / 4, 12 / 4, 4 / 4, 8 / 4),
        # The 14th partition ends inside the head, whose gradient it keeps whole, as the third does the embedding's.
        ({"strategy": "zero2", "gpus": 16}, 2, 12 / 16, 3 * 2 / 16, 8 / 16),
    ],
)
def test_states_by_hand(
    axes: dict[str, Any], parameters: float, moments: float, gradients: float, temporary: float
) -> None:
    found = setting(text_only(LLM), images=0, **axes)
    assert part(found, "optimizer", "parameters") == pytest.approx(parameters * NUMBERS)
    assert part(found, "optimizer", "optimizer states") == pytest.approx(moments * NUMBERS)
    assert part(found, "optimizer", "gradients") == pytest.approx(gradients * NUMBERS)
    assert part(found, "optimizer", "temporary of the update") == pytest.approx(temporary * NUMBERS)


def test_moments_in_8_bits_but_those_of_the_embedding() -> None:
    found = setting(text_only(LLM), images=0, optimizer="adamw_8bit")
    embedding = 151674 * 1536
    wanted = (NUMBERS - embedding) * (2 + 8 / 256) + embedding * 8
    assert part(found, "optimizer", "optimizer states") == pytest.approx(wanted)


def test_adapters_beside_frozen_weights_by_hand() -> None:
    found = setting(text_only(LLM), images=0, method="lora", lora_rank=8, projector="frozen")
    ranks = 28 * 8 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))
    matrices = NUMBERS - 28 * 2 * 1536 - 1536 - 151674 * 1536  # embedding and norms keep 4 bytes
    wanted = 2 * matrices + 4 * (NUMBERS - matrices) + 4 * ranks
    assert part(found, "optimizer", "parameters") == pytest.approx(wanted)
    assert part(found, "optimizer", "optimizer states") == pytest.approx(8 * ranks)


def test_logits_of_the_plain_loss() -> None:
    """16-bit logits, fp32 copy, log-softmax; then log-softmax, its gradient and theirs."""
    found = setting()
    assert part(found, "forward", "logits") == 2 * 1024 * 151674 * 10
    assert part(found, "loss", "logits") == 2 * 1024 * 151674 * 12


def test_checkpointing_keeps_ever_less() -> None:
    order = ["none", "every_4", "every_2", "selective", "full"]
    sizes = [allocated(rows=16, images=32, checkpointing=value, loss="chunked") for value in order]
    assert sizes == sorted(sizes, reverse=True)


def test_what_saves_memory_saves_it() -> None:
    many: dict[str, Any] = {"rows": 16, "images": 32}
    assert allocated(**many, attention="sdpa_flash") < allocated(**many, attention="eager")
    assert allocated(**many, loss="chunked") < allocated(**many)
    assert allocated(method="lora") < allocated(method="freeze") < allocated(method="full")
    assert allocated(precision="bf16_pure") < allocated(precision="bf16") < allocated(precision="fp32")


def test_ddp_adds_micro_steps_up_in_its_buckets() -> None:
    once = setting(strategy="ddp", gpus=2)
    more = setting(strategy="ddp", gpus=2, num_accumulation_steps=2)
    whole = part(once, "optimizer", "gradients")
    assert part(once, "forward", "gradients") == whole
    assert part(more, "forward", "gradients") == whole


@pytest.mark.parametrize("strategy", ["fsdp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_pure"])
def test_more_gpus_never_need_more(strategy: str, method: str, precision: str) -> None:
    sizes = [allocated(strategy=strategy, gpus=gpus, method=method, precision=precision) for gpus in (2, 4, 8, 16, 64)]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp", "zero2", "zero3"])
@pytest.mark.parametrize("loss", ["plain", "chunked", "fused_linear"])
@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_a_larger_batch_never_needs_less(strategy: str, loss: str, checkpointing: str) -> None:
    gpus = 1 if strategy == "single" else 4
    same: dict[str, Any] = {"strategy": strategy, "gpus": gpus, "loss": loss, "checkpointing": checkpointing}
    found = [predict_memory(setting(rows=rows, images=2 * rows, **same)) for rows in (1, 2, 3, 8, 64)]
    assert [one.allocated_bytes for one in found] == sorted(one.allocated_bytes for one in found)
    assert all(one.allocated_bytes < one.reserved_low_bytes <= one.reserved_high_bytes for one in found)


def test_the_sum_of_the_parts_is_the_peak() -> None:
    for axes in ({}, {"strategy": "fsdp", "gpus": 8}, {"method": "qlora"}, {"loss": "chunked", "attention": "eager"}):
        memory = explain(setting(**axes))
        assert memory.peak.total_bytes == pytest.approx(memory.allocated_bytes)
        assert all(one.formula for one in memory.peak.parts)


def test_twice_the_batch_is_twice_the_activations() -> None:
    once, twice = setting(rows=2, images=4), setting(rows=4, images=8)
    for name in ("activations of the LLM", "activations of the tower", "logits"):
        assert part(twice, "forward", name) == pytest.approx(2 * part(once, "forward", name))


def test_what_is_usual_lies_in_the_interval() -> None:
    found = setting()
    memory = predict_memory(found)
    assert memory.allocated_bytes <= reserved_bytes(found) <= memory.reserved_high_bytes


@pytest.mark.parametrize("change", [{"num_rows": 0}, {"width": -1}, {"num_images": -1}, {"num_scores": -1}])
def test_a_size_that_is_none_gets_one_error(change: dict[str, Any]) -> None:
    found = setting()
    with pytest.raises(InvalidInput, match="allowed: numbers from 0 up"):
        predict_memory(dataclasses.replace(found, longest=dataclasses.replace(found.longest, **change)))


def test_unknown_software_gets_one_error() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'torchtune'"):
        predict_memory(dataclasses.replace(setting(), software="torchtunes"))


def test_a_server_gpu_with_gddr_keeps_a_sixteenth_for_its_check_bits() -> None:
    # What nvidia-smi shows of them, MiB.
    for name, shown in (("T4-16GB", 15360), ("A10-24GB", 23028), ("L4-24GB", 23034), ("L40S-48GB", 46068)):
        assert usable_bytes(GPUS[name]) == pytest.approx(shown * 2**20, rel=0.01)
    assert usable_bytes(GPUS["RTX4090-24GB"]) == pytest.approx(24564 * 2**20, rel=0.01)


def test_kbit_training_keeps_the_head_in_32_bits() -> None:
    def weights(software: str) -> float:
        one = setting(text_only(LLM), images=0, method="qlora", precision="bf16_pure", checkpointing="full")
        found = explain(dataclasses.replace(one, software=software))
        return sum(part.num_bytes for part in found.phases[0].parts if part.name == "parameters")

    vocabulary, norms = 151674 * 1536, (2 * 28 + 1) * 1536
    assert weights("fms_bnb_kbit") - weights("fms_bnb") == 2 * (2 * vocabulary + norms)


TINYLLAMA = text_only(LlmShape(2048, 22, 32, 4, 64, 5632, 32000, False))
LLAMA_2_7B = text_only(LlmShape(4096, 32, 32, 32, 128, 11008, 32000, False))


@pytest.mark.parametrize(
    "shape, targets, counted",
    [
        # Bytes per position that one block more of litgpt saves (`benchmarks/predictor/count_litgpt.py`), rank 32; less
        # a byte of each mask, which are of bytes on a GPU.
        (TINYLLAMA, ".*_proj", 122456 - (4 * 2048 + 5632)),
        (TINYLLAMA, r".*self_attn\.[qv]_proj", 79658 - 2048),
        (LLAMA_2_7B, r".*self_attn\.[qv]_proj", 181096 - 4096),
    ],
)
def test_litgpt_keeps_what_was_counted_of_it(shape: ModelShape, targets: str, counted: int) -> None:
    found = [
        dataclasses.replace(
            setting(one, method="lora", precision="bf16_pure", lora_rank=32, lora_targets=targets, projector="frozen"),
            software="litgpt",
        )
        for one in (shape, dataclasses.replace(shape, llm=dataclasses.replace(shape.llm, layers=shape.llm.layers + 1)))
    ]
    less, more = (part(one, "forward", "activations of the LLM") / one.longest.num_rows / 1024 for one in found)
    assert more - less == pytest.approx(counted, rel=0.005)


def test_inputs_of_4_bit_matrices_stay_until_the_next_loss() -> None:
    stays = "inputs of 4-bit matrices, of the micro-step before"
    one = dataclasses.replace(setting(LLAMA_2_7B, method="qlora", precision="bf16_pure"), software="litgpt")
    assert part(one, "forward", stays) == 2 * 1024 * 32 * (3 * 4096 + 11008)  # of half as many tokens, 2 bytes each
    assert part(one, "loss", stays) == 0
    assert part(dataclasses.replace(one, software="hf"), "forward", stays) == 0


def test_who_waits_to_reduce_holds_whole_gradients_between_micro_steps() -> None:
    axes = {"strategy": "fsdp", "gpus": 4, "precision": "bf16_pure", "optimizer": "adamw_fused"}

    def gradients(software: str, steps: int, moment: str) -> float:
        one = setting(LLAMA_2_7B, num_accumulation_steps=steps, **axes)
        return part(dataclasses.replace(one, software=software), moment, "gradients")

    whole = 2 * 6_738_415_616
    assert gradients("hf", 2, "loss") == whole
    assert gradients("hf", 1, "loss") == 0
    assert gradients("egobench", 2, "loss") == gradients("hf", 2, "optimizer") == whole / 4


def test_frozen_weights_stay_whole_in_torch_2_0() -> None:
    one = setting(LLAMA_2_7B, method="lora", strategy="fsdp", gpus=4, precision="bf16_pure", checkpointing="full")
    first, since = (dataclasses.replace(one, software=name) for name in ("litgpt_first", "litgpt"))
    gathered = "gathered weights, and gradients that are reduced"
    assert part(first, "backward", gathered) == part(since, "backward", gathered)
    assert part(first, "backward_end", gathered) > 10 * part(since, "backward_end", gathered)


RETURNED = 1536 + 256 + 256 + 1536 + 8960 + 8960 + 1536
"""By the products of a block, without its adapters."""


@pytest.mark.parametrize("compile, dropped", [("off", 0), ("blocks", 2 * 1536)])
def test_selective_keeps_what_adapters_return_and_a_compiler_not_what_is_only_added(compile: str, dropped: int) -> None:
    one = setting(method="lora", precision="bf16_pure", checkpointing="selective", compile=compile)
    of_block = 2 * (2 * RETURNED + 7 * 16 - dropped + 1536) + 4 * 12 + 2 * 1536
    assert part(one, "loss", "activations of the LLM") == 28 * of_block * 2 * 1024


def test_a_compiler_adds_the_stream_up_again() -> None:
    def saved(name: str) -> float:
        eager, compiled = (setting(compile=one, precision="bf16_pure") for one in ("off", "blocks"))
        return part(eager, "loss", name) - part(compiled, "loss", name)

    # The second norm keeps nothing: the layer scale has what attention adds to the stream.
    assert saved("activations of the tower") == 4 * 1025 * 24 * 2 * 1024
    # Here that is kept in the stream's place; what goes are fp32 copies of two norms, and a SiLU.
    assert saved("activations of the LLM") == 2 * 1024 * 28 * (2 * 4 * 1536 + 2 * 8960)


def test_shard_grad_op_holds_whole_gradients_between_micro_steps() -> None:
    axes = {"strategy": "fsdp", "gpus": 4, "sharding": "shard_grad_op"}
    once, twice = (setting(LLM_ALONE, num_accumulation_steps=steps, **axes) for steps in (1, 2))
    assert part(once, "loss", "gradients") == 0 and part(twice, "loss", "gradients") == 4 * NUMBERS
    assert part(twice, "optimizer", "gradients") == part(once, "optimizer", "gradients") == NUMBERS


def test_shard_grad_op_cuts_up_what_has_gone_back() -> None:
    gathered = "gathered weights, and gradients that are reduced"
    one = setting(LLM_ALONE, strategy="fsdp", gpus=4, sharding="shard_grad_op")
    assert part(one, "backward", gathered) > 2 * NUMBERS > 3 * part(one, "backward_end", gathered)


def test_zero_1_reduces_accumulated_gradients_when_all_are_there() -> None:
    gathered = "gathered weights, and gradients that are reduced"
    one = setting(LLM_ALONE, strategy="zero1", gpus=4, num_accumulation_steps=2)
    assert part(one, "backward", gathered) == part(one, "backward_end", gathered) == 0
    assert part(one, "embedding", gathered) > 2 * 2 * 500_000_000


def test_where_every_second_block_is_kept_the_last_that_is_not_may_need_most() -> None:
    axes = {"rows": 16, "loss": "chunked", "strategy": "fsdp", "gpus": 8}

    def sizes(checkpointing: str) -> dict[str, float]:
        phases = explain(setting(checkpointing=checkpointing, **axes)).phases
        return {phase.name: sum(one.num_bytes for one in phase.parts) for phase in phases}

    every = sizes("every_2")
    assert every["backward, again"] > 1.04 * every["backward"] and "backward, again" not in sizes("full")
