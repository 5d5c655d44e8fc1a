"""What do the hooks that gather sharded parameters cost the host? One rank, blocks so narrow that nothing else counts.

    python benchmarks/gather_hooks.py [--blocks 24] [--steps 5]

CPU time of a micro-step under FSDP 2 and ZeRO-3, less that of the same without sharding, per unit or module and pass,
and in operations (an unsharded micro-step's time over the operations that the prediction counts for it). The source of
`unit_ops` and `module_ops` in egobench/predict/rates.py. There is one rank and nothing is sent: what is left is Python.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from instrumentation import Silence, block, trial_of  # noqa: E402

from egobench.predict.models import shape_of_dims  # noqa: E402
from egobench.predict.rates import DEFAULT, LOOPS  # noqa: E402
from egobench.predict.time import hook_ops  # noqa: E402
from egobench.predict.work import work_of  # noqa: E402
from egobench.probes.clock import NullClock  # noqa: E402
from egobench.spec.axes import AXES  # noqa: E402
from egobench.spec.dims import NAMED, ModelDims, TextDims, VisionDims  # noqa: E402
from egobench.train.rank import Rank  # noqa: E402
from egobench.train.setup import setup  # noqa: E402
from egobench.train.stages import Stages  # noqa: E402

ACCUMULATED: Final = (1, 4)
"""Micro-steps per update: the slope between them leaves the update out."""
COUNTING: Final = replace(DEFAULT, module_ops=1.0, unit_ops=1.0)
"""With these rates the prediction says how many units or modules it counts, over all passes."""


def narrow(num_blocks: int) -> ModelDims:
    """Return egotiny with so many blocks of 32 numbers in both parts."""
    own = NAMED["egotiny"]
    vision = VisionDims(32, num_blocks, 2, 64, own.vision.image_px, own.vision.patch_px)
    text = TextDims(32, num_blocks, 2, 2, 64, own.text.vocab, own.text.max_positions)
    return ModelDims(vision, text, own.image_token_id)


def update_s(strategy: str, checkpointing: str, num_micro_steps: int, num_blocks: int, num_steps: int) -> float:
    """Return the CPU seconds of an update; in a process of its own."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    NAMED["egotiny"] = narrow(num_blocks)
    with tempfile.TemporaryDirectory() as name:
        dist.init_process_group("gloo", init_method=f"file://{name}/meet", rank=0, world_size=1)
        trial = trial_of(Path(name), num_steps, 1)
        axes = {"strategy": strategy, "checkpointing": checkpointing, "num_accumulation_steps": num_micro_steps}
        trial = trial.model_copy(update={"cell": trial.cell.model_copy(update={"axes": trial.cell.axes | axes})})
        work = setup(trial, Rank(0, 0, 1, torch.device("cpu")), Stages(Silence(), NullClock()), [])
        work.schedule = replace(work.schedule, shape="constant", peak=0.0)
        seconds = [block(work, Path(name), False, time.process_time) / num_steps for _ in range(4)][1:]
        dist.destroy_process_group()
    return statistics.median(seconds)


def micro_step_s(strategy: str, checkpointing: str, num_blocks: int, num_steps: int) -> float:
    """Return the CPU seconds that one more micro-step takes."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        few, many = (
            pool.apply(update_s, (strategy, checkpointing, number, num_blocks, num_steps)) for number in ACCUMULATED
        )
    return (many - few) / (ACCUMULATED[1] - ACCUMULATED[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=24, help="of the LLM, and of the tower")
    parser.add_argument("--steps", type=int, default=5, help="updates per measurement, the median of three counts")
    options = parser.parse_args()
    loop, blocks, shape = LOOPS["egobench"], options.blocks, shape_of_dims(narrow(options.blocks))
    for checkpointing, passes in (("none", 2), ("full", 3)):
        base = micro_step_s("single", checkpointing, blocks, options.steps)
        op_s = base / (blocks * (loop.num_ops + loop.num_tower_ops) * passes)
        print(f"checkpointing {checkpointing}: {1e3 * base:.0f} ms a micro-step, {1e6 * op_s:.1f} us an operation")
        todo = work_of(
            shape, {name: axis.default for name, axis in AXES.items()} | {"checkpointing": checkpointing}, "plain"
        )
        assert todo is not None
        for strategy, what in (("fsdp", "unit"), ("zero3", "module")):
            number = hook_ops(todo, strategy, "egobench", loop, COUNTING)
            more = micro_step_s(strategy, checkpointing, blocks, options.steps) - base
            print(f"  {strategy}: {1e3 * more:.0f} ms more, {1e3 * more / number:.2f} ms or "
                  f"{more / number / op_s:.0f} operations per {what} and pass")  # fmt: skip


if __name__ == "__main__":
    main()
