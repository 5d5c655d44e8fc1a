"""FSDP2 (`torch.distributed.fsdp.fully_shard`): parameters, gradients and optimizer states spread over the ranks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from egobench.errors import InvalidInput, Mistake
from egobench.models.parts import core, head, llm_blocks, tower_blocks
from egobench.records.trial import Trial
from egobench.train.precision import Precision
from egobench.train.rank import Rank
from egobench.train.stages import Stages
from egobench.train.strategies import whole
from egobench.train.strategies.native import NativeStrategy


class FsdpStrategy(NativeStrategy):
    """One unit per block of the tower and of the LLM, one each for input embedding and head, the rest in the root.

    - The embedding is large and needed at the very beginning only: it is given back right after use, and not gathered
      again for its backward pass, which does not read it.
    - The head is as large, and the first to have a gradient: its reduction hides behind the whole backward pass, where
      in the root it would come last and be waited for. It stays gathered in between, as it is needed again at once.
    - Tied to each other both stay in the root, for a parameter belongs to one unit.
    - The root is the transformers model itself, not PEFT's wrapper around it: generation calls it directly.
    - 16 bit is FSDP's own mixed precision instead of autocast, as in torchtitan: blocks are gathered in 16 bit, which
      halves communication, and gradients are summed in fp32 into fp32 weights. Activations between blocks are
      16 bit as well, where autocast keeps fp32: losses agree with other strategies within the format's tolerance.
    - Gradients are summed and never averaged: the divide factor is 1, and gloo knows no scaled sum.

    Exposed communication begins when autograd has computed the last gradient (a callback of its engine) and ends when
    `backward` returns, by when the compute stream waits for all reductions: on CUDA this costs no synchronisation.
    On gloo reductions block, so those of all blocks but the last count as backward time.
    """

    answers_in_lockstep = True

    def __init__(self, trial: Trial, rank: Rank, stages: Stages, precision: Precision) -> None:
        super().__init__(trial, rank, stages, precision)
        self.format = precision.autocast
        # What the loop enters around forward passes; the scaler has been made from the full precision.
        self.precision = replace(precision, autocast=None)
        self.sharding = str(trial.cell.axes["sharding"])
        self.is_last_micro_step = True

    def builds_on(self) -> torch.device:
        return whole.builds_on(self.trial, self.rank)

    def wrap(self, model: nn.Module) -> nn.Module:
        # It warns of logits that somebody might change in place, which would lose the hook of the backward pass.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        is_built_once = whole.is_built_once(self.trial)
        weights: dict[str, Any] = {}
        if is_built_once and self.rank.is_first:
            weights = model.state_dict()
            whole.replace_parameters(model, whole.META)
        self._shard(model)
        if is_built_once:
            whole.replace_parameters(model, whole.CPU if self.is_offloaded else self.rank.device)
            whole.share_buffers(model, self.rank.device)
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(model, weights, options=options)
        return model

    @property
    def is_offloaded(self) -> bool:
        """Return whether parameters, gradients and optimizer states live in host memory."""
        return bool(self.trial.cell.axes["offload"] == "parameters")

    def _shard(self, model: nn.Module) -> None:
        base = core(model)
        keeps_blocks = self.sharding == "shard_grad_op"
        options: dict[str, Any] = {"mesh": self._mesh(), "mp_policy": self._policy(), "offload_policy": self._offload()}
        for block in [*tower_blocks(model), *llm_blocks(model)]:
            fully_shard(block, reshard_after_forward=not keeps_blocks, **options)
        first, last = base.get_input_embeddings(), head(model)
        if first.weight is not last.weight:
            fully_shard(first, reshard_after_forward=not keeps_blocks, **options)
            first.set_unshard_in_backward(False)
            fully_shard(last, reshard_after_forward=False, **options)
        fully_shard(base, reshard_after_forward=False, **options)
        # transformers 5.23 generates by calling parts of the model, which must find the root gathered.
        register_fsdp_forward_method(base, "generate")
        for unit in self._units(model):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)

    def _mesh(self) -> DeviceMesh:
        device, num_ranks = self.rank.device.type, self.rank.num_ranks
        if self.sharding != "hybrid_shard":
            return init_device_mesh(device, (num_ranks,), mesh_dim_names=("shard",))
        num_replicas = max(2, self.trial.placement.num_nodes)
        if num_ranks % num_replicas or num_ranks < 2 * num_replicas:
            what = f"hybrid_shard with {num_ranks} ranks on {self.trial.placement.num_nodes} nodes"
            raise InvalidInput([Mistake("axes.sharding", what, "allowed: replicas of 2 or more ranks each")])
        shape = (num_replicas, num_ranks // num_replicas)
        return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))

    def _policy(self) -> MixedPrecisionPolicy:
        if self.format is None:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=self.format, reduce_dtype=torch.float32)

    def _offload(self) -> OffloadPolicy:
        if not self.is_offloaded:
            return OffloadPolicy()
        return CPUOffloadPolicy(pin_memory=self.rank.device.type == "cuda")

    @contextlib.contextmanager
    def accumulate(self, is_last: bool) -> Iterator[None]:
        """Keep gradients local for as long as the sharding has memory for that.

        full_shard never holds whole gradients: they are reduced in every micro-step. hybrid_shard does so within a
        replica and sums over replicas once. shard_grad_op holds them, and the parameters, until the last micro-step.
        """
        self.is_last_micro_step = is_last
        root = core(self.model)
        if self.sharding == "shard_grad_op":
            root.set_requires_gradient_sync(is_last)
            root.set_reshard_after_backward(is_last)
        elif self.sharding == "hybrid_shard":
            root.set_requires_all_reduce(is_last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        if self.is_last_micro_step:
            whole.after_last_gradient(loss, lambda: self.stages.enter("communication"))
        super().backward(loss)

    def clip(self, max_norm: float) -> torch.Tensor:
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm.to(self.rank.device)

    def load(self, folder: Path) -> None:
        for unit in self._units(self.model):
            unit.reshard()  # what an evaluation left gathered would hide the weights that are read
        super().load(folder)

    def _units(self, model: nn.Module) -> list[FSDPModule]:
        return [module for module in model.modules() if isinstance(module, FSDPModule)]
