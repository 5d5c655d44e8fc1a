"""Settings that tests of the time prediction start from."""

from __future__ import annotations

import dataclasses
from typing import Any

from egobench.hardware import GPUS
from egobench.predict.setting import Batch, Machine, Setting
from egobench.predict.shapes import LlmShape, ModelShape, TowerShape, text_only
from egobench.predict.time import predict_time
from egobench.spec.axes import AXES

LLAMA_2_7B = text_only(LlmShape(4096, 32, 32, 32, 128, 11008, 32000, is_tied=False))
INTERNVL3_8B = ModelShape(
    TowerShape(1024, 24, 16, 4096, 448, 14, 3), LlmShape(3584, 28, 28, 4, 128, 18944, 151674, is_tied=False), 0.5
)
A100 = Machine(GPUS["A100-80GB SXM"], gpus_per_node=8, node_bytes_per_s=200e9)


def batch(num_rows: int = 4, width: float = 2048, num_images: float = 0, num_supervised: float | None = None) -> Batch:
    tokens = num_rows * width
    supervised = tokens if num_supervised is None else num_supervised
    return Batch(num_rows, width, num_images, supervised, tokens, tokens * width)


def setting(
    shape: ModelShape = LLAMA_2_7B, of: Batch | None = None, machine: Machine = A100, software: str = "egobench",
    **axes: Any,
) -> Setting:  # fmt: skip
    whole = {name: axis.default for name, axis in AXES.items()}
    chosen = {"workload": "made-up", "precision": "bf16", "attention": "flash_attention_2", **axes}
    one = batch() if of is None else of
    return Setting(shape, {**whole, **chosen}, one, one, machine, software)


def step_s(one: Setting) -> float:
    time = predict_time(one)
    assert time is not None
    return time.step_time_s


def parts_of(one: Setting) -> dict[str, float]:
    time = predict_time(one)
    assert time is not None
    return {part.name: part.time_s for part in time.parts}


def changed(one: Setting, **axes: Any) -> Setting:
    return dataclasses.replace(one, axes={**one.axes, **axes})
