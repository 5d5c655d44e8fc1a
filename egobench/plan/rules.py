"""Which combinations cannot run, each written once, with its reason and where it is known from.

A rule says that something is impossible, not that it is unwise: what would run slowly or run out of
memory is for `predict`. A GPU that is not in egobench/hardware.py is never judged by its capability.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from egobench.hardware import Gpu, find_gpu
from egobench.plan.blocks import VARIANT
from egobench.spec.axes import AXES, AxisValue
from egobench.spec.site import Site
from egobench.spec.variants import ON_GPU, RUNTIME_KINDS, Variant
from egobench.spec.workload import MODEL_PATCH_PX, SHIPPED_WEIGHTS, Workload


@dataclass(frozen=True)
class Setting:
    """What a rule looks at: some axes of a point, and what lies around it."""

    at: Mapping[str, Any]
    """The axes that the rule reads, and no others."""
    site: Site
    gpu: Gpu | None
    """The site's GPU, None on a CPU site and for one that is not in the table."""
    workload: Workload
    variants: Sequence[Variant] = ()
    """Of the matrix."""

    @property
    def variant(self) -> Variant:
        """Return the variant that the point is; for rules that read its axis."""
        return next(one for one in self.variants if one.name == self.at[VARIANT])

    @property
    def on_cpu(self) -> bool:
        return self.site.device == "cpu"

    def weaker_than(self, major: int, minor: int) -> bool:
        """Tell whether the GPU is known to lack a compute capability."""
        return self.gpu is not None and self.gpu.compute_capability < (major, minor)

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the value of every axis that the matrix does not mention."""
        return {name: axis.default for name, axis in AXES.items()} | self.workload.defaults

    @property
    def patch_px(self) -> int | None:
        """Return the patch of the model's tower, None for a checkpoint folder."""
        name = self.workload.model.name
        return MODEL_PATCH_PX.get(name) if name is not None else None

    @property
    def trained_px(self) -> int | None:
        """Return the pictures that shipped weights were trained on, None where weights are drawn or read."""
        model = self.workload.model
        is_shipped = model.weights == "shipped" and model.path is None
        return SHIPPED_WEIGHTS.get(model.name or "") if is_shipped else None

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
ZERO = ("zero1", "zero2", "zero3")
WITHOUT_ADAPTERS = ("full", "freeze", "last_blocks")
WITH_ADAPTERS = ("lora", "dora", "qlora")
_FLASH = "https://github.com/Dao-AILab/flash-attention"
_SDPA = "https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.SDPBackend.html"
_CAPABILITIES = "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities"


def _says_nothing(axis: str, because: str, when: Mapping[str, Collection[AxisValue]]) -> Rule:
    """Make the rule that an option keeps its default where nothing reads it: another value were the same trial twice.

    Args:
        axis: The option.
        because: Why it is idle there, after "says nothing "; `{axis}` of every axis in `when` is filled in.
        when: Axis -> values; the option is idle where each of these axes has one of its values.
    """
    return Rule(
        "says_nothing",
        (axis, *when),
        f"{axis} '{{{axis}}}' says nothing {because}; with the default '{{setting.defaults[{axis}]}}' it is the same",
        "egobench/spec/axes.py",
        lambda s: all(s.at[name] in values for name, values in when.items()) and s.at[axis] != s.defaults[axis],
    )


def _kernel_rules(axis: str) -> tuple[Rule, ...]:
    """Make the rules of a kernel of attention, the LLM's or the tower's own."""
    value = f"'{{{axis}}}'"
    return (
        Rule(
            "flash_needs_half", (axis, "precision"), f"{value} has no {{precision}} kernels, only fp16 and bf16",
            _FLASH, lambda s: s.at[axis] in FLASH_PACKAGES and s.at["precision"] in ("fp32", "tf32"),
        ),
        Rule(
            "gpu_kernels", (axis,), f"{value} needs a CUDA GPU", f"{_FLASH}, {_SDPA}",
            lambda s: s.on_cpu and s.at[axis] in (*FLASH_PACKAGES, "sdpa_cudnn", "sdpa_efficient"),
        ),
        Rule(
            "forced_half", (axis, "precision"), f"{value} has no {{precision}} kernels on a GPU", _SDPA,
            lambda s: not s.on_cpu
            and s.at[axis] in ("sdpa_flash", "sdpa_cudnn")
            and s.at["precision"] in ("fp32", "tf32"),
        ),
        Rule(
            "flash_capability", (axis,), f"{value} needs compute capability 8.0, {{gpu}} has less",
            f"{_FLASH}#nvidia-cuda-support",
            lambda s: s.at[axis] in ("flash_attention_2", "sdpa_flash", "sdpa_cudnn") and s.weaker_than(8, 0),
        ),
        Rule(
            "flash_3_capability", (axis,), f"{value} needs a Hopper GPU (compute capability 9.0), not {{gpu}}",
            f"{_FLASH}#flashattention-3-beta-release",
            lambda s: s.at[axis] == "flash_attention_3" and s.weaker_than(9, 0),
        ),
        Rule(
            "flex_backward", (axis,), "flex attention has no backward pass on CPU",
            "transformers 5.23 and torch 2.13, tried", lambda s: s.on_cpu and s.at[axis] == "flex",
        ),
    )  # fmt: skip


def _variant_rules() -> tuple[Rule, ...]:
    return (
        Rule(
            "runtime_kinds", (VARIANT,), "{setting.variant.runtime} runs no {setting.variant.kind} model",
            "egobench/infer/runtimes", lambda s: s.variant.kind not in RUNTIME_KINDS[s.variant.runtime],
        ),
        Rule(
            "gpu_runtimes", (VARIANT,), "{setting.variant.runtime} needs a CUDA GPU",
            "https://docs.vllm.ai, https://nvidia.github.io/TensorRT-LLM",
            lambda s: s.on_cpu and s.variant.runtime in ON_GPU,
        ),
        Rule(
            "fp8_capability", (VARIANT,), "fp8 needs compute capability 8.9, {gpu} has less", _CAPABILITIES,
            lambda s: s.variant.kind in ("fp8", "fp8_static") and s.weaker_than(8, 9),
        ),
    )  # fmt: skip


def _has_replicas(setting: Setting) -> bool:
    """Tell whether the ranks of a point make replicas: one a node, or two on one node (`FsdpStrategy`)."""
    gpus, per_node = int(setting.at["gpus"]), setting.site.gpus_per_node
    num_replicas = gpus // per_node if gpus > per_node else 2
    return gpus % num_replicas == 0 and gpus >= 2 * num_replicas


RULES: tuple[Rule, ...] = (
    Rule(
        "single_is_one_rank", ("strategy", "gpus"), "strategy 'single' uses 1 GPU, not {gpus}",
        "its definition", lambda s: s.at["strategy"] == "single" and s.at["gpus"] != 1,
    ),
    Rule(
        "sharding_needs_ranks", ("strategy", "gpus", "offload"),
        "'{strategy}' spreads states over ranks and has only 1",
        # Not fsdp, which on one rank still keeps activations between blocks in 16 bits, where autocast does not; and
        # what is offloaded leaves the GPU however many there are.
        "https://arxiv.org/abs/1910.02054",
        lambda s: s.at["strategy"] in ZERO and s.at["gpus"] < 2 and s.at["offload"] == "none",
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
        "hybrid_shape", ("strategy", "sharding", "gpus"), "{gpus} ranks make no replicas of 2 or more ranks each",
        "https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html (a 2-d mesh)",
        lambda s: s.at["strategy"] == "fsdp" and s.at["sharding"] == "hybrid_shard" and not _has_replicas(s),
    ),
    Rule(
        "fsdp_offload", ("strategy", "offload"), "fsdp offloads states together with parameters, never alone",
        "https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html (CPUOffloadPolicy)",
        lambda s: s.at["strategy"] == "fsdp" and s.at["offload"] == "optimizer",
    ),
    Rule(
        "zero_offload", ("strategy", "offload"), "'{strategy}' keeps parameters whole; zero3 can offload them",
        "https://www.deepspeed.ai/docs/config-json/#parameter-offloading",
        lambda s: s.at["strategy"] in ("zero1", "zero2") and s.at["offload"] == "parameters",
    ),
    Rule(
        "zero_updates_fp32", ("strategy", "precision"), "'{strategy}' updates fp32 weights; bf16 computes in bf16 too",
        "deepspeed 0.19.8: bf16_master_weights_and_grads is for its own CPU optimizer, which is compiled first",
        lambda s: s.at["strategy"] in ZERO and s.at["precision"] == "bf16_pure",
    ),
    Rule(
        "zero3_one_graph", ("strategy", "compile"), "zero3 gathers parameters inside of what would be one graph",
        "deepspeed 0.19.8 and torch 2.13, tried: the compiler fails at its hooks",
        lambda s: s.at["strategy"] == "zero3" and s.at["compile"] == "whole",
    ),
    Rule(
        "bitsandbytes_fsdp", ("strategy", "optimizer"), "'{optimizer}' cannot update fsdp's DTensors; torchao's can",
        "bitsandbytes 0.50.2, tried",
        lambda s: s.at["strategy"] == "fsdp" and s.at["optimizer"] in ("adamw_8bit", "adamw_8bit_paged"),
    ),
    *_kernel_rules("attention"),
    *_kernel_rules("vision_attention"),
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
        "zero_fp16_on_gpu", ("strategy", "precision"), "'{strategy}' has no {precision} on a CPU",
        "deepspeed 0.19.8, tried",
        lambda s: s.on_cpu and s.at["precision"] == "fp16" and s.at["strategy"] in ZERO,
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
        "trained_on_px", ("image_px",), "{image_px} px; the weights of {model} see {setting.trained_px} px",
        "its config.json", lambda s: s.trained_px not in (None, s.at["image_px"]),
    ),
    Rule(
        "image_fits", ("image_px", "max_length"),
        "an image is {setting.image_tokens} tokens, max_length is {max_length}",
        "image tokens are never cut off",
        lambda s: s.image_tokens is not None and s.at["max_length"] <= s.image_tokens,
    ),
    *_variant_rules(),
    # What follows drops no trial that could tell anything: an option that nothing reads at this point.
    *(
        _says_nothing(option, "for method '{method}', which has no adapters", {"method": WITHOUT_ADAPTERS})
        for option in ("lora_rank", "lora_alpha", "lora_targets")
    ),
    _says_nothing("projector", "for method '{method}', which trains everything", {"method": ("full",)}),
    _says_nothing("sharding", "for strategy '{strategy}', which is not fsdp", {"strategy": ("single", "ddp", *ZERO)}),
    _says_nothing("offload", "for strategy '{strategy}', which cannot offload", {"strategy": ("single", "ddp")}),
    *(
        _says_nothing("vision_checkpointing", "for a frozen tower, which keeps no activations", when)
        for when in (
            {"method": ("freeze", "last_blocks")},
            {"method": WITH_ADAPTERS, "lora_targets": ("llm",)},
        )
    ),
)  # fmt: skip
"""In the order in which they are asked; a point shows the first one that drops it."""


def surroundings(
    site: Site, workload: Workload, variants: Sequence[Variant] = ()
) -> Callable[[Mapping[str, Any]], Setting]:
    """Return a maker of settings for points of one workload on one site."""
    gpu = find_gpu(site.gpu) if site.device == "cuda" else None
    return lambda at: Setting(at, site, gpu, workload, variants)


def first_reason(point: Mapping[str, Any], site: Site, workload: Workload, variants: Sequence[Variant] = ()) -> str:
    """Return why a whole point cannot run, an empty string if it can."""
    setting = surroundings(site, workload, variants)
    for rule in RULES:
        if all(axis in point for axis in rule.axes):
            reason = rule.reason(setting({axis: point[axis] for axis in rule.axes}))
            if reason:
                return reason
    return ""
