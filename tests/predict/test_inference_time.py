"""The time of answering: what a decoding step is bound by, and published speeds."""

from __future__ import annotations

import dataclasses

import pytest

from egobench.hardware import GPUS
from egobench.predict.inference import Answering, Format, Request, Runtime, predict_inference
from egobench.predict.rates import DEFAULT
from tests.predict.time_settings import INTERNVL3_8B, LLAMA_2_7B

A100, ORIN, RTX4090 = GPUS["A100-80GB SXM"], GPUS["Jetson AGX Orin 64GB"], GPUS["RTX4090-24GB"]


def answering(
    gpu: str = "A100-80GB SXM", weights: Format = "bf16", runtime: Runtime = "compiled", **request: float
) -> Answering:
    asked = {"num_rows": 1, "prompt": 64, "num_new": 200, **request}
    found = predict_inference(
        LLAMA_2_7B, GPUS[gpu], Request(int(asked["num_rows"]), asked["prompt"], num_new=asked["num_new"]),
        weights=weights, runtime=runtime,
    )  # fmt: skip
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("gpu", "weights", "tokens_per_s"),
    [
        ("A100-80GB SXM", "bf16", 107.4),
        ("A100-80GB SXM", "int8", 170.8),
        ("A100-80GB SXM", "int4", 201.1),
        ("RTX A6000-48GB", "int4", 1e3 / 8.71),
        ("RTX4090-24GB", "int4", 1e3 / 6.02),
        ("Jetson AGX Orin 64GB", "int4", 1e3 / 32.14),
        ("Jetson AGX Orin 64GB", "fp16", 1e3 / 86.80),
    ],
)
def test_published_speeds_of_llama_2_7b(gpu: str, weights: Format, tokens_per_s: float) -> None:
    assert answering(gpu, weights).decode_tokens_per_s == pytest.approx(tokens_per_s, rel=0.2)


def test_a_step_reads_every_weight_once() -> None:
    at_best = 2 * (6_476_005_376 + 32000 * 4096) / A100.bandwidth_bytes_per_s
    assert at_best < answering().decode_s < 1.5 * at_best


def test_a_batch_is_nearly_free_until_products_or_the_cache_weigh() -> None:
    assert answering(num_rows=8).decode_s < 1.15 * answering().decode_s
    assert answering(num_rows=8, prompt=4096).decode_s > 1.5 * answering(num_rows=8).decode_s


def test_an_eager_runtime_is_bound_by_its_launches() -> None:
    eager = answering(runtime="eager", weights="int4")
    assert eager.decode_s == answering(runtime="eager").decode_s  # fewer bytes do not help
    assert eager.decode_s / 32 == pytest.approx(0.87e-3, rel=0.05)  # transformers, whatever the model


def test_prefill_grows_with_the_prompt_and_images_are_encoded() -> None:
    assert answering(prompt=4096).prefill_s > 1.9 * answering(prompt=2048).prefill_s
    found = predict_inference(INTERNVL3_8B, A100, Request(1, 2000, num_images=7, num_new=64))
    assert found is not None
    # 7 tiles of 0.72 TFLOP.
    assert 7 * 0.72e12 / 312e12 < found.encode_s < 4 * 7 * 0.72e12 / 312e12
    assert found.request_s == pytest.approx(found.encode_s + found.prefill_s + 63 * found.decode_s)


def test_an_unknown_gpu_has_no_number() -> None:
    assert predict_inference(LLAMA_2_7B, dataclasses.replace(A100, peak_flops={}), Request(1, 64)) is None


def test_a_calibrated_system_is_used() -> None:
    slow = dataclasses.replace(DEFAULT, op_s=100e-6)
    found = predict_inference(LLAMA_2_7B, RTX4090, Request(1, 64), rates=slow)
    assert found is not None
    assert found.decode_s == pytest.approx(50 * 32 * 100e-6)
    assert predict_inference(LLAMA_2_7B, ORIN, Request(1, 64)) is not None
