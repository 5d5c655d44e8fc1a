"""What a method trains, what it leaves alone, and that what is frozen costs no graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_trials import make_trial, one_rank, run_keeping_weights, setup_here
from transformers.models.internvl.modeling_internvl import InternVLVisionMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from egobench.models.internvl import EGOTINY, FAMILY, config_of
from egobench.models.parts import llm_blocks, projector, tower
from egobench.spec.dims import NAMED
from egobench.train.methods import count_parameters, last_blocks
from egobench.train.setup import Work

TOWER, PROJECTOR, LLM, HEAD = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head."
LAST = (LLM + "layers.2.", LLM + "norm.")
TRAINED: list[tuple[str, str, tuple[str, ...]]] = [
    ("full", "trained", ("",)),
    ("freeze", "trained", (PROJECTOR, LLM, HEAD)),
    ("freeze", "frozen", (LLM, HEAD)),
    ("last_blocks", "trained", (PROJECTOR, *LAST)),
    ("last_blocks", "frozen", LAST),
]


def work_of(folder: Path, **axes: Any) -> Work:
    return setup_here(make_trial(folder, axes=axes, model={"name": "egotiny"}))


def loss_of(work: Work) -> torch.Tensor:
    dealt = work.feed.next()
    with work.precision.compute(work.rank.device):
        return work.loss.compute(work.model, dealt.batch, dealt.pixel_values) / dealt.global_supervised_tokens


@pytest.mark.parametrize(("method", "projector", "trained"), TRAINED)
def test_exactly_what_is_trained_changes(tmp_path: Path, method: str, projector: str, trained: tuple[str, ...]) -> None:
    before = FAMILY.from_pretrained(EGOTINY, dtype=torch.float32).state_dict()
    axes = {"method": method, "projector": projector}
    trial = make_trial(tmp_path, axes=axes, model={"name": "egotiny"}, recipe={"weight_decay": 0.1, "num_steps": 2})
    summary, after = run_keeping_weights(trial, tmp_path, one_rank())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {name for name in before if name.startswith(trained)}
    # The embeddings of words that no sample holds have no gradient, but decay all the same.
    assert changed == wanted
    assert summary.num_parameters == sum(tensor.numel() for tensor in before.values())
    assert summary.num_trainable_parameters == sum(before[name].numel() for name in wanted)


def kept_by(part: nn.Module) -> list[int]:
    """Count what autograd keeps inside a module: the list grows with each tensor."""
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    part.register_forward_pre_hook(lambda *_: hooks.__enter__())
    part.register_forward_hook(lambda *_: hooks.__exit__(None, None, None))
    return sizes


@pytest.mark.parametrize(
    ("method", "projector", "keeps"),
    [
        ("full", "trained", (True, True, True)),
        ("freeze", "trained", (False, True, True)),
        ("last_blocks", "trained", (False, True, True)),
        ("last_blocks", "frozen", (False, False, True)),
        ("lora", "trained", (False, True, True)),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_frozen_below_keeps_no_activations(
    tmp_path: Path, method: str, projector: str, keeps: tuple[bool, bool, bool], precision: str
) -> None:
    work = work_of(tmp_path, method=method, projector=projector, precision=precision)
    first, *_, last = llm_blocks(work.model)
    kept = [kept_by(part) for part in (tower(work.model), first, last)]
    loss_of(work).backward()  # type: ignore[no-untyped-call]
    assert tuple(bool(sizes) for sizes in kept) == keeps


@pytest.mark.parametrize(("method", "calls"), [("full", (6, 6)), ("freeze", (3, 6)), ("last_blocks", (3, 4))])
def test_a_frozen_block_is_not_recomputed(tmp_path: Path, method: str, calls: tuple[int, int]) -> None:
    work = work_of(tmp_path, method=method, projector="frozen" if method != "full" else "trained", checkpointing="full")
    counted = [0, 0]

    def count(module: object, *_: object) -> None:
        for place, kind in enumerate((InternVLVisionMLP, Qwen2MLP)):
            counted[place] += isinstance(module, kind)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        loss_of(work).backward()  # type: ignore[no-untyped-call]
    finally:
        hook.remove()
    assert tuple(counted) == calls  # three blocks each


@pytest.mark.parametrize(
    ("name", "number", "share"),
    [("egotiny", 1, 0.151), ("internvl3-1b", 6, 0.095), ("internvl3-2b", 4, 0.090), ("internvl3-8b", 3, 0.088)],
)
def test_the_last_blocks_are_about_a_tenth(name: str, number: int, share: float) -> None:
    with torch.device("meta"):
        model = FAMILY._from_config(config_of(NAMED[name]))
    last_blocks(model, {"projector": "frozen"})
    trained = [any(parameter.requires_grad for parameter in block.parameters()) for block in llm_blocks(model)]
    assert trained == [False] * (len(trained) - number) + [True] * number
    every, own = count_parameters(model)
    assert own / every == pytest.approx(share, abs=0.0006)
    block = sum(parameter.numel() for parameter in llm_blocks(model)[-1].parameters())
    assert all(abs(own / every - 0.1) <= abs((own + other) / every - 0.1) for other in (block, -block) if own > -other)
    last_blocks(model, {"projector": "trained"})
    assert count_parameters(model)[1] == own + sum(one.numel() for one in projector(model).parameters())
