"""Which combinations cannot run, each written once, with its reason and where it is known from.

A rule says that something is impossible, not that it is unwise: what would run slowly or run out of
memory is for `predict`. A GPU that is not in egobench/hardware.py is never judged by its capability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from egobench.hardware import Gpu, find_gpu
from egobench.plan.blocks import VARIANT
from egobench.spec.axes import AXES
from egobench.spec.site import Site
from egobench.spec.workload import MODEL_PATCH_PX, Workload


@dataclass(frozen=True)
class Setting:
    """What a rule looks at: some axes of a point, and what lies around it."""

    at: Mapping[str, Any]
    """The axes that the rule reads, and no others."""
    site: Site
    gpu: Gpu | None
    """The site's GPU, None on a CPU site and for one that is not in the table."""
    workload: Workload

    @property
    def on_cpu(self) -> bool:
        return self.site.device == "cpu"

    def weaker_than(self, major: int, minor: int) -> bool:
        """Tell whether the GPU is known to lack a compute capability."""
        return self.gpu is not None and self.gpu.compute_capability < (major, minor)

    @property
    def patch_px(self) -> int | None:
        """Return the patch of the model's tower, None for a checkpoint folder."""
        name = self.workload.model.name
        return MODEL_PATCH_PX.get(name) if name is not None else None

    @property
    def image_tokens(self) -> int | None:
        """Return the LLM's tokens per image, None for a checkpoint folder."""
        return (self.at["image_px"] // (2 * self.patch_px)) ** 2 if self.patch_px is not None else None


@dataclass(frozen=True)
class Rule:
    """One impossibility."""

    name: str
    axes: tuple[str, ...]
    """The axes it reads."""
    because: str
    """The reason; `{axis}`, `{gpu}` and `{site...}` are filled in."""
    source: str
    """Where this is known from."""
    test: Callable[[Setting], bool]
    """Tell whether the point cannot run."""

    def reason(self, setting: Setting) -> str:
        """Return why a point cannot run, an empty string if this rule lets it."""
        if not self.test(setting):
            return ""
        gpu, workload = setting.site.gpu or "this site", setting.workload
        because = self.because.format(
            **setting.at, site=setting.site, gpu=gpu, model=workload.model.name, setting=setting
        )
        return f"{self.name}: {because} ({self.source})"


FLASH_PACKAGES = ("flash_attention_2", "flash_attention_3")
SHARDED = ("fsdp", "zero1", "zero2", "zero3")
_FLASH = "https://github.com/Dao-AILab/flash-attention"
_SDPA = "https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.SDPBackend.html"
_CAPABILITIES = "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities"


def _not_built(axis: str, table: Mapping[str, str | None]) -> Rule:
    return Rule(
        "not_built",
        (axis,),
        f"{axis} '{{{axis}}}' is not built in this version",
        "egobench/spec/axes.py",
        lambda setting: table.get(setting.at[axis]) is None,
    )


RULES: tuple[Rule, ...] = (
    Rule(
        "single_is_one_rank", ("strategy", "gpus"), "strategy 'single' uses 1 GPU, not {gpus}",
        "its definition", lambda s: s.at["strategy"] == "single" and s.at["gpus"] != 1,
    ),
    Rule(
        "sharding_needs_ranks", ("strategy", "gpus"), "'{strategy}' spreads states over ranks and has only 1",
        "https://arxiv.org/abs/1910.02054", lambda s: s.at["strategy"] in SHARDED and s.at["gpus"] < 2,
    ),
    Rule(
        "site_capacity", ("gpus",), "{gpus} ranks; the site has {site.max_nodes} x {site.gpus_per_node}",
        "the site file", lambda s: s.at["gpus"] > s.site.gpus_per_node * s.site.max_nodes,
    ),
    Rule(
        "whole_nodes", ("gpus",), "{gpus} GPUs do not fill nodes of {site.gpus_per_node}",
        "ranks are spread evenly over nodes",
        lambda s: s.at["gpus"] > s.site.gpus_per_node and s.at["gpus"] % s.site.gpus_per_node != 0,
    ),
    Rule(
        "flash_needs_half", ("attention", "precision"), "'{attention}' has no {precision} kernels, only fp16 and bf16",
        _FLASH, lambda s: s.at["attention"] in FLASH_PACKAGES and s.at["precision"] in ("fp32", "tf32"),
    ),
    Rule(
        "gpu_kernels", ("attention",), "'{attention}' needs a CUDA GPU", f"{_FLASH}, {_SDPA}",
        lambda s: s.on_cpu and s.at["attention"] in (*FLASH_PACKAGES, "sdpa_cudnn", "sdpa_efficient"),
    ),
    Rule(
        "forced_half", ("attention", "precision"), "'{attention}' has no {precision} kernels on a GPU", _SDPA,
        lambda s: not s.on_cpu
        and s.at["attention"] in ("sdpa_flash", "sdpa_cudnn")
        and s.at["precision"] in ("fp32", "tf32"),
    ),
    Rule(
        "flash_capability", ("attention",), "'{attention}' needs compute capability 8.0, {gpu} has less",
        f"{_FLASH}#nvidia-cuda-support",
        lambda s: s.at["attention"] in ("flash_attention_2", "sdpa_flash", "sdpa_cudnn") and s.weaker_than(8, 0),
    ),
    Rule(
        "flash_3_capability", ("attention",), "'{attention}' needs a Hopper GPU (compute capability 9.0), not {gpu}",
        f"{_FLASH}#flashattention-3-beta-release",
        lambda s: s.at["attention"] == "flash_attention_3" and s.weaker_than(9, 0),
    ),
    Rule(
        "flex_backward", ("attention",), "flex attention has no backward pass on CPU",
        "transformers 5.23 and torch 2.13, tried", lambda s: s.on_cpu and s.at["attention"] == "flex",
    ),
    Rule(
        "gpu_formats", ("precision",), "{precision} needs a CUDA GPU", _CAPABILITIES,
        lambda s: s.on_cpu and s.at["precision"] in ("tf32", "fp8"),
    ),
    Rule(
        "fp8_capability", ("precision",), "fp8 needs compute capability 8.9, {gpu} has less", _CAPABILITIES,
        lambda s: s.at["precision"] == "fp8" and s.weaker_than(8, 9),
    ),
    Rule(
        "half_capability", ("precision",), "{precision} needs compute capability 8.0, {gpu} has less", _CAPABILITIES,
        lambda s: s.at["precision"] in ("bf16", "bf16_pure", "tf32") and s.weaker_than(8, 0),
    ),
    Rule(
        "qlora_compute", ("method", "precision"), "4-bit weights compute in fp32, fp16 or bf16, not in {precision}",
        "https://huggingface.co/docs/bitsandbytes", lambda s: s.at["method"] == "qlora" and s.at["precision"] == "fp8",
    ),
    Rule(
        "fused_loss_on_gpu", ("loss",), "the fused linear loss is a Triton kernel and needs a CUDA GPU",
        "https://github.com/linkedin/Liger-Kernel", lambda s: s.on_cpu and s.at["loss"] == "fused_linear",
    ),
    Rule(
        "whole_patches", ("image_px",),
        "{image_px} px is no multiple of {model}'s merged patch of 2 x {setting.patch_px} px",
        "https://huggingface.co/OpenGVLab/InternVL3-2B (pixel unshuffle 0.5)",
        lambda s: s.patch_px is not None and s.at["image_px"] % (2 * s.patch_px) != 0,
    ),
    Rule(
        "image_fits", ("image_px", "max_length"),
        "an image is {setting.image_tokens} tokens, max_length is {max_length}",
        "image tokens are never cut off",
        lambda s: s.image_tokens is not None and s.at["max_length"] <= s.image_tokens,
    ),
    *(_not_built(axis.name, axis.table) for axis in AXES.values() if axis.table is not None),
    _not_built(VARIANT, {}),
)  # fmt: skip
"""In the order in which they are asked; a point shows the first one that drops it."""


def surroundings(site: Site, workload: Workload) -> Callable[[Mapping[str, Any]], Setting]:
    """Return a maker of settings for points of one workload on one site."""
    gpu = find_gpu(site.gpu) if site.device == "cuda" else None
    return lambda at: Setting(at, site, gpu, workload)


def first_reason(point: Mapping[str, Any], site: Site, workload: Workload) -> str:
    """Return why a whole point cannot run, an empty string if it can."""
    setting = surroundings(site, workload)
    for rule in RULES:
        if all(axis in point for axis in rule.axes):
            reason = rule.reason(setting({axis: point[axis] for axis in rule.axes}))
            if reason:
                return reason
    return ""
