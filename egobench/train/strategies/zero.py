"""ZeRO stages 1, 2 and 3 by DeepSpeed's engine, in the process group that exists; no launcher, nothing compiled."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from egobench.errors import EnvironmentProblem
from egobench.models.parts import core, llm_blocks, tower_blocks
from egobench.probes.memory import Held
from egobench.records.trial import Trial
from egobench.train.precision import Precision
from egobench.train.rank import Rank
from egobench.train.replaced import replaced
from egobench.train.stages import Stages
from egobench.train.strategies import whole
from egobench.train.strategies.native import gather_things
from egobench.train.strategies.strategy import BuildOptimizer, Thing

BUCKET: Final = 500_000_000
"""Elements that are reduced or gathered at once, DeepSpeed's default; its buffers are allocated in full."""


class ZeroStrategy:
    """Stage 1 spreads optimizer states, stage 2 gradients as well, stage 3 parameters as well.

    - Gradients are summed: DeepSpeed averages over the ranks, so the loss is multiplied by their number (exact for
      powers of two), and it is not told of micro-steps.
    - 16 bit is DeepSpeed's own: 16-bit weights compute without autocast, and fp32 master weights, which start from the
      rounded ones, are updated. Activations and reductions are 16 bit, gradients add up over micro-steps in fp32. fp16
      has DeepSpeed's loss scaler, set to the numbers of torch's.
    - Stage 3 keeps vectors whole (10 x hidden size, the rule of transformers' `auto`): a gather of a norm would cost
      its latency and save nothing.
    - Offloaded states are updated by the same torch optimizer on the CPU: DeepSpeed's own would be compiled first.
      Offloaded parameters take their optimizer states along, as they do with FSDP.
    - Generation uses the 16-bit weights; stage 3 gathers them for each forward pass.

    Exposed communication begins with the last gradient, as with FSDP, and ends when the engine has reduced what is
    left in its bucket; the gathering of updated weights (stages 1 and 2) is part of the optimizer phase.
    """

    num_settling_passes = 0

    def __init__(self, trial: Trial, rank: Rank, stages: Stages, precision: Precision) -> None:
        self.trial, self.rank, self.stages = trial, rank, stages
        self.format, self.precision = precision.autocast, replace(precision, autocast=None)
        self.stage = int(str(trial.cell.axes["strategy"]).removeprefix("zero"))
        self.answers_in_lockstep = self.stage == 3
        self.is_last_micro_step = True
        self.engine: Any = None
        self.optimizer: torch.optim.Optimizer

    def builds_on(self) -> torch.device:
        return whole.builds_on(self.trial, self.rank)

    def prepare(self, model: nn.Module, build: BuildOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        deepspeed = import_deepspeed(self.rank)
        self._settle(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        config = self.config(sum(parameter.numel() for parameter in trained), _hidden_size(model))
        optimizer = build(model)  # while parameters have their shapes: matrices decay, vectors do not
        if self.stage == 3:
            _keep_together(deepspeed, model, self.trial.cell.axes["compile"] == "blocks")
            # One parameter after the other goes to the device and is cut up there; the engine would move all at once.
            deepspeed.zero.Init(module=model, config_dict_or_path=config)
        with contextlib.redirect_stdout(io.StringIO()):  # the optimizer of stage 1 in bf16 prints the memory it sees
            self.engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, model_parameters=trained, config=config, dist_init_required=False
            )
        if (scaler := getattr(self.engine.optimizer, "loss_scaler", None)) is not None:
            # A training that overflows for ever is for the recorder to end, as under every strategy.
            scaler.raise_error_at_min_scale = False
        self.optimizer = optimizer
        return self.engine, optimizer

    def _settle(self, model: nn.Module) -> None:
        """Cast parameters as the engine would, and give those on meta memory for it to broadcast into."""
        if self.format is not None:
            for parameter in model.parameters():
                if parameter.dtype in (torch.float32, torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.to(self.format)
        if whole.is_built_once(self.trial) and not self.rank.is_first:
            # Host memory that is never written is never there: stage 3 copies each parameter to the device in turn.
            whole.replace_parameters(model, whole.CPU if self.stage == 3 else self.rank.device)
        whole.share_buffers(model, self.rank.device)

    def config(self, num_trained: int, hidden_size: int) -> dict[str, Any]:
        """Return DeepSpeed's configuration; what is not in it has DeepSpeed's default."""
        axes, recipe = self.trial.cell.axes, self.trial.cell.workload.recipe
        on_gpu = self.rank.device.type == "cuda"
        bucket = min(BUCKET, num_trained + num_trained % 2)
        zero: dict[str, Any] = {
            "stage": self.stage,
            "overlap_comm": on_gpu,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        }
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = 10 * hidden_size
            # DeepSpeed's own linear layer adds the bias to the very product that `selective` keeps: it would be added
            # again. It is there so that no graph holds gathered weights; what is recomputed has no such graph.
            zero["memory_efficient_linear"] = "selective" not in (axes["checkpointing"], axes["vision_checkpointing"])
        offload = {"device": "cpu", "pin_memory": on_gpu}
        if axes["offload"] in ("optimizer", "parameters"):
            zero["offload_optimizer"] = offload
        if axes["offload"] == "parameters":
            zero["offload_param"] = offload
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # read by its log only
            "gradient_accumulation_steps": 1,
            "gradient_clipping": recipe.max_grad_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }
        return config | self._number_formats(int(axes["num_accumulation_steps"]))

    def _number_formats(self, num_micro_steps: int) -> dict[str, Any]:
        if self.format is None:
            return {}
        sums = {"data_types": {"grad_accum_dtype": "fp32"}} if num_micro_steps > 1 else {}
        if self.format == torch.float16:
            scaler = {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 2000, "hysteresis": 1}
            return {"fp16": {"enabled": True, **scaler}, **sums}
        return {"bf16": {"enabled": True}, **sums}

    def unwrap(self, model: nn.Module) -> Any:
        return self.engine.module

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        self.is_last_micro_step = is_last
        self.engine.set_gradient_accumulation_boundary(is_last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        if self.is_last_micro_step:
            whole.after_last_gradient(loss, lambda: self.stages.enter("communication"))
        self.engine.backward(loss * self.rank.num_ranks, scale_wrt_gas=False)

    def update(self, max_norm: float) -> torch.Tensor:
        assert max_norm == self.engine.gradient_clipping()
        self.engine.step()
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.rank.device)
        return norm.masked_fill(norm < 0, float("inf"))  # it writes -1 for a norm that is not finite

    def forget(self) -> None:
        # DeepSpeed drops gradients with a step that overflowed only: have it see one, and its loss scaler none.
        optimizer = self.engine.optimizer
        scaler = vars(getattr(optimizer, "loss_scaler", self))
        kept = dict(scaler)
        module, log = sys.modules[type(optimizer).__module__], logging.getLogger("DeepSpeed")
        with replaced(module, "is_invalid_grad_norm", lambda _: True), replaced(log, "disabled", True):
            self.engine.step()
        scaler.update(kept)

    def gather(self, thing: Thing) -> list[Thing]:
        return gather_things(self.rank, thing)

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=self._tag(), save_latest=False)

    def load(self, folder: Path) -> None:
        found, _ = self.engine.load_checkpoint(str(folder), tag=self._tag())
        assert found is not None, folder

    def _tag(self) -> str:
        # DeepSpeed mixes up files of several stages or formats under one tag.
        axes = self.trial.cell.axes
        return f"{axes['strategy']}-{axes['precision']}"

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the fp32 master weights of what is trained, and the rest as it is."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        model: nn.Module = self.engine.module
        state: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad:
                value = safe_get_full_fp32_param(parameter)
            else:
                with deepspeed.zero.GatheredParameters(parameter, enabled=self.stage == 3):
                    value = parameter.detach().cpu().clone()
            if self.rank.is_first:
                state[whole.plain_name(name)] = value.detach().cpu()
        return state

    def held_tensors(self) -> Held:
        """Return what this rank holds of model, gradients and states; DeepSpeed keeps most of it in its optimizer."""
        inner = self.engine.optimizer
        model: nn.Module = self.engine.module
        parts = [part for one in model.parameters() if (part := getattr(one, "ds_tensor", None)) is not None]
        masters = [one for name in _MASTERS for one in getattr(inner, name, ())]
        own = [one.grad for one in (*model.parameters(), *masters) if one.grad is not None]
        sums = [of for name in ("all_grad_tensors", "averaged_gradients") for of in getattr(inner, name, {}).values()]
        reduced = [grad for of in sums for grad in of or ()]
        gradients = [*own, *reduced, *getattr(inner, "fp32_groups_gradients_flat", ())]
        states = [one for of in self.optimizer.state.values() for one in of.values() if isinstance(one, torch.Tensor)]
        return Held([*model.parameters(), *parts, *model.buffers()], gradients, [*states, *masters])


_MASTERS: Final = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition")
"""Where DeepSpeed's optimizers keep the fp32 weights that they update: stages 1 and 2, stage 3, stage 1 in bf16."""


def import_deepspeed(rank: Rank) -> Any:
    """Import DeepSpeed so that it takes the trial's device, says nothing on stdout and compiles nothing.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    if rank.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    for name, value in (("RANK", rank.rank), ("LOCAL_RANK", rank.local_rank), ("WORLD_SIZE", rank.num_ranks)):
        os.environ.setdefault(name, str(value))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its logger keeps the stream that it finds
            import deepspeed
    except ImportError as error:
        raise EnvironmentProblem("strategy 'zero' needs deepspeed: pip install 'egobench[deepspeed]'") from error
    # It calls collectives by names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    # Shared-memory collectives for CPUs: they serve inference, and would be compiled first (31 s). The module is
    # named by its path because `deepspeed.comm.torch` is torch itself.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed


def _keep_together(deepspeed: Any, model: nn.Module, is_compiled: bool) -> None:
    """Have stage 3 gather some modules as one, so that no hook of its lies inside of them.

    A compiled block would break its graph at every hook, and the forward pass of a DoRA layer reads weights of the
    layers inside of it.
    """
    blocks = {type(block) for block in (*tower_blocks(model), *llm_blocks(model))} if is_compiled else set()
    layers = {type(module) for module in model.modules() if len(getattr(module, "lora_magnitude_vector", ()))}
    if blocks or layers:
        deepspeed.utils.set_z3_leaf_modules(model, list(blocks or layers))


def _hidden_size(model: nn.Module) -> int:
    return int(core(model).config.text_config.hidden_size)
