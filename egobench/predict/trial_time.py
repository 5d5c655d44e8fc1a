"""How long a trial takes around its steps: starting, loading, and asking the questions. Rules of thumb, for planning.

They decide how trials are packed into jobs and what a sweep is said to cost; no measured number is held against them.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

from egobench.predict.setting import Setting
from egobench.predict.shapes import ModelShape
from egobench.spec.workload import Workload

START_UP_S: Final = 60.0
"""Imports on the ranks, joining them, the pass over the worst micro-batch."""
LOADED_BYTES_PER_S: Final = 1e9
"""Of weights, read from a shared file system or drawn."""
LAYER_S: Final = 1e-3
"""Of one block and one generated token: launching its kernels, by transformers' `generate`."""
PREFILL_SHARE: Final = 0.3
"""Of the GPU's peak, while a prompt is read."""
UNCOUNTED_QUESTIONS: Final = 1000
"""Where the workload asks all validation questions, whose number only the data knows."""


def around_steps_s(setting: Setting, workload: Workload) -> float:
    """Return what a trial takes beyond its steps, s."""
    times = 2 if workload.evaluation.before else 1
    return (
        START_UP_S + _num_parameters(setting.shape) * 4 / LOADED_BYTES_PER_S + times * _questions_s(setting, workload)
    )


@cache
def _num_parameters(shape: ModelShape) -> int:
    """Return the weights of all matrices, nearly all there are."""
    return sum(matrix.inputs * matrix.outputs for matrix in shape.matrices().values())


def _questions_s(setting: Setting, workload: Workload) -> float:
    how, gpu = workload.evaluation, setting.machine.gpu
    number = how.num_questions
    if number is None:
        number = workload.data.num_validation or UNCOUNTED_QUESTIONS
    if number == 0:
        return 0.0
    num_batches = math.ceil(number / int(setting.axes["gpus"]) / how.batch_size)
    flops = 2 * _num_parameters(setting.shape) * how.batch_size * setting.usual.width
    peak = gpu.peak_at(str(setting.axes["precision"])) or gpu.peak("fp16") or min(gpu.peak_flops.values())
    layers = setting.shape.llm.layers + setting.shape.tower.layers
    return num_batches * (flops / (PREFILL_SHARE * peak) + how.max_new_tokens * layers * LAYER_S)
