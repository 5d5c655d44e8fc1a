"""Each rule stops what it must stop, and nothing else; each has a row here."""

from typing import Any

import pytest

from egobench.hardware import GPUS
from egobench.plan.rules import RULES, first_reason, surroundings
from egobench.spec.axes import AXES
from egobench.spec.site import LOCAL, Site
from egobench.spec.workload import Workload

WORKLOAD = Workload.model_validate(
    {
        "why": "test",
        "model": {"name": "internvl3-2b", "weights": "random"},
        "data": {"format": "egoworld", "domain": "home", "num_train": 1, "num_validation": 1},
        "recipe": {"num_steps": 1, "learning_rate": 1e-3},
        "image_px": 448,
    }
)


def cuda(gpu: str | None, nodes: int = 1, per_node: int = 8) -> Site:
    return Site(why="test", launcher="slurm", device="cuda", gpu=gpu, gpus_per_node=per_node, max_nodes=nodes)


A100, H100, T4, L4 = (cuda(name) for name in ("A100-80GB SXM", "H100-80GB SXM", "T4-16GB", "L4-24GB"))
UNKNOWN = cuda(None)

# rule, axes, a site where it drops the point, a change of axes that lets it run, or a site that does
ROWS: list[tuple[str, dict[str, Any], Site, dict[str, Any] | Site]] = [
    ("single_is_one_rank", {"strategy": "single", "gpus": 2}, LOCAL, {"gpus": 1}),
    ("single_is_one_rank", {"strategy": "single", "gpus": 2}, LOCAL, {"strategy": "ddp"}),
    ("sharding_needs_ranks", {"strategy": "fsdp", "gpus": 1}, A100, {"gpus": 2}),
    ("sharding_needs_ranks", {"strategy": "zero3", "gpus": 1}, A100, {"strategy": "ddp"}),
    ("site_capacity", {"strategy": "ddp", "gpus": 9}, A100, {"gpus": 8}),
    ("site_capacity", {"strategy": "ddp", "gpus": 16}, A100, cuda("A100-80GB SXM", nodes=2)),
    ("whole_nodes", {"strategy": "ddp", "gpus": 6}, cuda(None, 2, 4), {"gpus": 8}),
    ("flash_needs_half", {"attention": "flash_attention_2", "precision": "fp32"}, A100, {"precision": "bf16"}),
    ("flash_needs_half", {"attention": "flash_attention_2", "precision": "tf32"}, A100, {"attention": "sdpa"}),
    ("gpu_kernels", {"attention": "flash_attention_2", "precision": "bf16"}, LOCAL, A100),
    ("gpu_kernels", {"attention": "sdpa_cudnn"}, LOCAL, {"attention": "sdpa_flash"}),
    ("forced_half", {"attention": "sdpa_flash", "precision": "fp32"}, A100, LOCAL),
    ("forced_half", {"attention": "sdpa_cudnn", "precision": "fp32"}, A100, {"precision": "bf16"}),
    ("flash_capability", {"attention": "flash_attention_2", "precision": "fp16"}, T4, A100),
    ("flash_capability", {"attention": "flash_attention_2", "precision": "fp16"}, T4, UNKNOWN),
    ("flash_3_capability", {"attention": "flash_attention_3", "precision": "bf16"}, A100, H100),
    ("flex_backward", {"attention": "flex"}, LOCAL, A100),
    ("gpu_formats", {"precision": "fp8"}, LOCAL, H100),
    ("gpu_formats", {"precision": "tf32"}, LOCAL, A100),
    ("fp8_capability", {"precision": "fp8"}, A100, L4),
    ("half_capability", {"precision": "bf16"}, T4, A100),
    ("half_capability", {"precision": "bf16"}, T4, {"precision": "fp16"}),
    ("qlora_compute", {"method": "qlora", "precision": "fp8"}, H100, {"precision": "bf16"}),
    ("fused_loss_on_gpu", {"loss": "fused_linear"}, LOCAL, A100),
    ("whole_patches", {"image_px": 450}, A100, {"image_px": 476}),
    ("image_fits", {"image_px": 448, "max_length": 256}, A100, {"max_length": 257}),
    ("not_built", {"method": "dora"}, A100, {"method": "full"}),
]


def point(axes: dict[str, Any]) -> dict[str, Any]:
    base = {name: axis.default for name, axis in AXES.items()}
    return base | {"workload": "w", "learning_rate": 1e-3, "num_steps": 1, "image_px": 448, "max_length": 512} | axes


def reason(rule: str, axes: dict[str, Any], site: Site) -> str:
    at, setting = point(axes), surroundings(site, WORKLOAD)
    rules = [one for one in RULES if one.name == rule and set(one.axes) <= set(at)]
    assert rules
    return next(filter(None, (one.reason(setting({name: at[name] for name in one.axes})) for one in rules)), "")


@pytest.mark.parametrize(("rule", "axes", "site", "cure"), ROWS)
def test_rule(rule: str, axes: dict[str, Any], site: Site, cure: dict[str, Any] | Site) -> None:
    why = reason(rule, axes, site)
    assert why.startswith(f"{rule}: ")
    assert "{" not in why
    assert first_reason(point(axes), site, WORKLOAD).split(":")[0] in {one.name for one in RULES}
    cured = reason(rule, axes, cure) if isinstance(cure, Site) else reason(rule, axes | cure, site)
    assert cured == ""


def test_every_rule_has_a_row_and_a_source() -> None:
    assert {rule.name for rule in RULES} == {row[0] for row in ROWS}
    assert all(rule.source and rule.because for rule in RULES)


def test_every_value_without_a_builder_is_dropped_and_no_other() -> None:
    for axis in AXES.values():
        for value, builder in (axis.table or {}).items():
            dropped = reason("not_built", {axis.name: value}, A100)
            assert bool(dropped) == (builder is None), (axis.name, value, dropped)


def test_the_plain_point_runs_everywhere() -> None:
    for site in (LOCAL, UNKNOWN, *(cuda(name) for name in GPUS)):
        assert first_reason(point({}), site, WORKLOAD) == ""


def test_a_checkpoint_folder_is_never_judged_by_a_patch() -> None:
    own = WORKLOAD.model_copy(update={"model": WORKLOAD.model.model_copy(update={"name": None, "path": "x"})})
    assert first_reason(point({"image_px": 451}), A100, own) == ""
