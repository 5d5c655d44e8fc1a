"""Each rule stops what it must stop, and nothing else; each has a row here."""

from typing import Any

import pytest

from egobench.hardware import GPUS
from egobench.plan.rules import RULES, first_reason, surroundings
from egobench.spec.axes import AXES, METHODS
from egobench.spec.site import LOCAL, Site
from egobench.spec.variants import Variant
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
    ("sharding_needs_ranks", {"strategy": "zero1", "gpus": 1}, A100, {"gpus": 2}),
    ("sharding_needs_ranks", {"strategy": "zero3", "gpus": 1}, A100, {"strategy": "fsdp"}),
    ("sharding_needs_ranks", {"strategy": "zero2", "gpus": 1}, A100, {"offload": "optimizer"}),
    ("hybrid_shape", {"strategy": "fsdp", "sharding": "hybrid_shard", "gpus": 2}, A100, {"gpus": 4}),
    ("hybrid_shape", {"strategy": "fsdp", "sharding": "hybrid_shard", "gpus": 5}, A100, {"gpus": 6}),
    ("hybrid_shape", {"strategy": "fsdp", "sharding": "hybrid_shard", "gpus": 4}, cuda(None, 4, 1), cuda(None, 2, 2)),
    ("fsdp_offload", {"strategy": "fsdp", "gpus": 2, "offload": "optimizer"}, A100, {"offload": "parameters"}),
    ("fsdp_offload", {"strategy": "fsdp", "gpus": 2, "offload": "optimizer"}, A100, {"strategy": "zero2"}),
    ("zero_offload", {"strategy": "zero2", "gpus": 2, "offload": "parameters"}, A100, {"strategy": "zero3"}),
    ("zero_offload", {"strategy": "zero1", "gpus": 2, "offload": "parameters"}, A100, {"offload": "optimizer"}),
    ("zero_updates_fp32", {"strategy": "zero3", "gpus": 2, "precision": "bf16_pure"}, A100, {"precision": "bf16"}),
    ("zero3_one_graph", {"strategy": "zero3", "gpus": 2, "compile": "whole"}, A100, {"compile": "blocks"}),
    ("zero3_one_graph", {"strategy": "zero3", "gpus": 2, "compile": "whole"}, A100, {"strategy": "fsdp"}),
    ("bitsandbytes_fsdp", {"strategy": "fsdp", "optimizer": "adamw_8bit"}, A100, {"optimizer": "adamw_8bit_torchao"}),
    ("bitsandbytes_fsdp", {"strategy": "fsdp", "optimizer": "adamw_8bit_paged"}, A100, {"strategy": "ddp"}),
    ("says_nothing", {"strategy": "ddp", "sharding": "shard_grad_op"}, A100, {"strategy": "fsdp"}),
    ("says_nothing", {"strategy": "zero3", "gpus": 2, "sharding": "hybrid_shard"}, A100, {"sharding": "full_shard"}),
    ("says_nothing", {"strategy": "single", "offload": "optimizer"}, A100, {"strategy": "zero1", "gpus": 2}),
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
    ("flash_needs_half", {"vision_attention": "flash_attention_2", "precision": "fp32"}, A100, {"precision": "bf16"}),
    ("gpu_kernels", {"vision_attention": "sdpa_efficient"}, LOCAL, {"vision_attention": "same"}),
    ("forced_half", {"vision_attention": "sdpa_flash", "precision": "fp32"}, A100, {"vision_attention": "sdpa"}),
    ("flash_capability", {"vision_attention": "sdpa_flash", "precision": "fp16"}, T4, A100),
    ("flash_3_capability", {"vision_attention": "flash_attention_3", "precision": "bf16"}, A100, H100),
    ("flex_backward", {"vision_attention": "flex"}, LOCAL, {"vision_attention": "sdpa_flash"}),
    ("gpu_formats", {"precision": "fp8"}, LOCAL, H100),
    ("gpu_formats", {"precision": "tf32"}, LOCAL, A100),
    ("fp8_capability", {"precision": "fp8"}, A100, L4),
    ("half_capability", {"precision": "bf16"}, T4, A100),
    ("half_capability", {"precision": "bf16"}, T4, {"precision": "fp16"}),
    ("qlora_compute", {"method": "qlora", "precision": "fp8"}, H100, {"precision": "bf16"}),
    ("zero_fp16_on_gpu", {"strategy": "zero2", "gpus": 2, "precision": "fp16"}, LOCAL, A100),
    ("zero_fp16_on_gpu", {"strategy": "zero2", "gpus": 2, "precision": "fp16"}, LOCAL, {"strategy": "fsdp"}),
    ("fused_loss_on_gpu", {"loss": "fused_linear"}, LOCAL, A100),
    ("whole_patches", {"image_px": 450}, A100, {"image_px": 476}),
    ("image_fits", {"image_px": 448, "max_length": 256}, A100, {"max_length": 257}),
    ("says_nothing", {"lora_rank": 8}, A100, {"method": "lora"}),
    ("says_nothing", {"lora_rank": 8, "method": "freeze"}, A100, {"lora_rank": 16}),
    ("says_nothing", {"lora_alpha": 8.0, "method": "last_blocks"}, A100, {"method": "qlora"}),
    ("says_nothing", {"lora_targets": "all-linear"}, A100, {"method": "dora"}),
    ("says_nothing", {"projector": "frozen"}, A100, {"method": "freeze"}),
    ("says_nothing", {"vision_checkpointing": "full", "method": "last_blocks"}, A100, {"method": "full"}),
    ("says_nothing", {"vision_checkpointing": "none", "method": "lora"}, A100, {"lora_targets": "all-linear"}),
    ("says_nothing", {"vision_checkpointing": "full", "method": "lora"}, A100, {"vision_checkpointing": "same"}),
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
    assert {rule.name for rule in RULES} == {row[0] for row in ROWS} | {
        "trained_on_px", "runtime_kinds", "gpu_runtimes",
    }  # fmt: skip
    assert all(rule.source and rule.because for rule in RULES)


@pytest.mark.parametrize(
    ("rule", "variant", "site", "cured"),
    [
        ("runtime_kinds", {"kind": "awq", "runtime": "onnxruntime"}, A100, {"runtime": "torch"}),
        ("gpu_runtimes", {"kind": "as_trained", "runtime": "vllm"}, LOCAL, {"runtime": "torch"}),
        ("fp8_capability", {"kind": "fp8"}, A100, {"kind": "int8"}),
    ],
)
def test_rules_of_variants(rule: str, variant: dict[str, Any], site: Site, cured: dict[str, Any]) -> None:
    at = point({"variant": "v"})
    for own, starts in ((variant, f"{rule}: "), (variant | cured, "")):
        why = first_reason(at, site, WORKLOAD, (Variant.model_validate({"name": "v", **own}),))
        assert why.startswith(starts) and bool(why) == bool(starts)


def test_shipped_weights_see_pictures_of_one_size() -> None:
    model = WORKLOAD.model.model_copy(update={"name": "egotiny", "weights": "shipped"})
    own = WORKLOAD.model_copy(update={"model": model})
    assert first_reason(point({"image_px": 96}), A100, own).startswith("trained_on_px: 96 px; the weights of egotiny")
    assert first_reason(point({"image_px": 64}), A100, own) == ""
    drawn = own.model_copy(update={"model": model.model_copy(update={"weights": "random"})})
    assert first_reason(point({"image_px": 96}), A100, drawn) == ""


def test_every_option_of_a_method_is_idle_without_it() -> None:
    """Whoever adds an option of the adapters must say where nothing reads it."""
    for axis in AXES:
        if axis.startswith("lora_"):
            for method in METHODS:
                idle = reason("says_nothing", {axis: "other" if axis == "lora_targets" else 3, "method": method}, A100)
                assert bool(idle) == (method not in ("lora", "dora", "qlora")), (axis, method, idle)


def test_the_default_of_a_workload_is_no_choice_of_the_matrix() -> None:
    own = WORKLOAD.model_copy(update={"defaults": {"lora_rank": 8}})
    assert first_reason(point({"lora_rank": 8}), A100, own) == ""
    assert "lora_rank '16' says nothing for method 'full'" in first_reason(point({"lora_rank": 16}), A100, own)


def test_the_plain_point_runs_everywhere() -> None:
    for site in (LOCAL, UNKNOWN, *(cuda(name) for name in GPUS)):
        assert first_reason(point({}), site, WORKLOAD) == ""


def test_a_checkpoint_folder_is_never_judged_by_a_patch() -> None:
    own = WORKLOAD.model_copy(update={"model": WORKLOAD.model.model_copy(update={"name": None, "path": "x"})})
    assert first_reason(point({"image_px": 451}), A100, own) == ""
