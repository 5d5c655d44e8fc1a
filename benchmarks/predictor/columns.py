"""What a row of a table of published runs says by its columns alone, for a source that nobody here has described.

The columns are those of `measured_training.csv`; what one leaves open is taken to be as in transformers' Trainer.
"""

from __future__ import annotations

import re
from typing import Any, Final

Row = dict[str, str]
REQUIRED: Final = ("model", "gpu", "n_gpus", "method", "batch_per_gpu", "seq_len")
"""Columns without which there is no setting; `act_ckpt` too, unless a source is described."""
OPTIONAL: Final = (
    "source_csv", "software", "weights_dtype", "precision_mode", "sharding", "act_ckpt", "attention", "compile",
    "optimizer", "grad_accum", "images", "tokens_per_s_per_gpu", "samples_per_s_total", "mem_GB", "mem_kind", "status",
    "notes",
)  # fmt: skip
"""Columns that are read where a table has them; `software`: the loop, by a key of `egobench.predict.constants`."""
SOFTWARE: Final[tuple[tuple[str, str], ...]] = (
    ("liger", "hf_liger"),
    ("torchtitan", "torchtitan"),
    ("torchtune", "torchtune"),
    ("litgpt", "litgpt"),
    ("foundry", "llm_foundry"),
    ("mosaic", "llm_foundry"),
    ("xtuner", "xtuner"),
    ("internvl", "internvl"),
    ("llava", "internvl"),
)
"""What a source's name or a note has in it -> the loop it is taken for, by a key of `egobench.predict.constants`."""
ADAPTED: Final = (
    ("qkvo", r".*self_attn\.[qkvo]_proj"),
    ("qkv", r".*self_attn\.[qkv]_proj"),
    ("qv", r".*self_attn\.[qv]_proj"),
    ("all", ".*_proj"),
    ("", r".*self_attn\.[qv]_proj"),
)
"""What a method has in it -> where its adapters go; PEFT's own choice for Llama where nothing is said."""


class Unmapped(Exception):
    """A row that no setting stands for; the text says why."""


def stated(row: Row) -> dict[str, Any]:
    """Return the axes that need no reading.

    Raises:
        Unmapped: the model is cut up in a way that egobench does not know.
    """
    if re.search(r"\b(tp|pp|cp|sp)\d", _text(row, "sharding")):
        raise Unmapped("tensor, pipeline or context parallel")
    return {
        "workload": "published",
        "gpus": int(row["n_gpus"]),
        "micro_batch_size": int(float(row["batch_per_gpu"])),
        "num_accumulation_steps": int(float(row.get("grad_accum") or 1)),
        "optimizer": "adamw",
        "attention": "eager" if _text(row, "attention") == "eager" else "flash_attention_2",
        "projector": "frozen",
        "lora_rank": 16,
        "padding": "max",
    }


def read_columns(row: Row) -> tuple[str, dict[str, Any]]:
    """Return the loop and the axes of a row.

    Raises:
        Unmapped: it is no setting of egobench.
    """
    method, strategy = _method(row), _strategy(row)
    software = _software(row, method)
    rank = re.search(r"\br(?:ank)?\s*(\d+)", _text(row, "method"))
    return software, {
        **stated(row),
        "method": method,
        "strategy": strategy,
        "sharding": _sharding(row),
        "offload": _offload(row, strategy),
        "precision": _precision(row, method, strategy, software),
        "checkpointing": _checkpointing(row),
        "attention": _attention(row),
        "compile": "blocks" if _text(row, "compile") in ("1", "true", "yes") else "off",
        "optimizer": _optimizer(row),
        "projector": "trained" if method == "freeze" else "frozen",
        "loss": "chunked" if re.search(r"chunked (ce|cross|loss)", _text(row, "notes")) else "plain",
        "lora_rank": int(rank[1]) if rank else 16,
        "lora_targets": next(found for word, found in ADAPTED if word in _text(row, "method")),
        "padding": "dynamic" if "<=" in row["seq_len"] or "variable" in _text(row, "notes") else "max",
    }


def _text(row: Row, *columns: str) -> str:
    return " ".join(row.get(column, "") for column in columns).lower()


def _software(row: Row, method: str) -> str:
    if row.get("software"):
        return row["software"]
    text = _text(row, "source_csv", "sharding", "notes")
    name = next((name for word, name in SOFTWARE if word in text), "hf")
    if name == "torchtitan" and "2026" in text:
        return "torchtitan_2026"
    if method == "qlora" and name == "hf":
        if "gptq" in _text(row, "model", "method", "notes"):
            return "fms_gptq"
        # FSDP wants one format in a unit, so that nothing is widened there.
        return "fms_bnb" if "fsdp" in _text(row, "sharding") else "hf_kbit"
    return name


def _method(row: Row) -> str:
    text = _text(row, "method")
    if "adapter on" in text or "prefix" in text or "prompt" in text:
        raise Unmapped("a prefix adapter, which is no method of egobench")
    if "projector only" in text:
        raise Unmapped("the projector alone is trained")
    if "int8" in text or "8bit" in text or "8-bit" in text:
        raise Unmapped("8-bit matrices beside adapters")
    if re.search(r"qlora|q-lora|gptq|awq|bnb|nf4|int4|4-?bit", text):
        return "qlora"
    if "dora" in text:
        return "dora"
    if "lora" in text:
        return "lora"
    return "freeze" if "full llm" in text or "frozen" in text else "full"


def _strategy(row: Row) -> str:
    text, gpus = _text(row, "sharding"), int(row["n_gpus"])
    if "device_map" in text and gpus > 1:
        raise Unmapped("layers of one model spread over GPUs (device_map)")
    if "ddp" in text:
        return "ddp"
    stage = re.search(r"zero-?\s?([123])", text)
    if stage:
        return f"zero{stage[1]}"
    if "deepspeed" in text:
        return "zero2"
    if "fsdp" in text or "hsdp" in text:
        return "fsdp" if gpus > 1 else "single"
    return "single" if gpus == 1 else "ddp"


def _offload(row: Row, strategy: str) -> str:
    if "offload" not in _text(row, "sharding"):
        return "none"
    # Stage 2 can move nothing but the optimizer; of stage 3 the usual settings move everything.
    is_optimizer = strategy in ("zero1", "zero2") or "optimizer offload" in _text(row, "sharding", "notes")
    return "optimizer" if is_optimizer else "parameters"


def _sharding(row: Row) -> str:
    text = _text(row, "sharding")
    if "hsdp" in text or "hybrid" in text:
        return "hybrid_shard"
    return "shard_grad_op" if "grad_op" in text or "no reshard" in text else "full_shard"


def _precision(row: Row, method: str, strategy: str, software: str) -> str:
    text, weights = _text(row, "precision_mode"), _text(row, "weights_dtype")
    is_pure = "pure" in text or "true" in text
    if "nvfp4" in text or "mxfp4" in text:
        raise Unmapped("products in 4 bits")
    if "fp8" in text or "float8" in text:
        return "fp8"
    if "fp32" in text or "float32" in text:
        return "fp32"
    if "tf32" in text:
        return "tf32"
    if ("fp16" in text or "float16" in text) and "bf" not in text and not is_pure:
        return "fp16"
    if strategy.startswith("zero"):
        return "bf16"  # DeepSpeed keeps 32-bit masters of what is trained
    if method != "full":
        return "bf16_pure"  # what adapters stand beside, and what is frozen, is loaded in 16 bits
    # Who fine-tunes with transformers loads a checkpoint as it was saved, in 16 bits, where nothing else is said.
    is_half = (software.startswith("hf") and not weights) or re.match(r"bf|float16|fp16", weights)
    return "bf16_pure" if is_pure or (is_half and "amp" not in text) else "bf16"


def _checkpointing(row: Row) -> str:
    text = _text(row, "act_ckpt")
    if not text:
        raise Unmapped("whether activations are computed again is not stated")
    if text in ("false", "none", "no", "off", "0"):
        return "none"
    if "selective" in text or "sac" in text:
        return "every_2" if "layer" in text else "selective"
    if text in ("true", "yes", "on", "1") or "full" in text:
        return "full"
    raise Unmapped(f"what is computed again is not known: {row['act_ckpt']}")


def _attention(row: Row) -> str:
    text = _text(row, "attention").replace(" ", "")
    if "eager" in text:
        return "eager"
    if "efficient" in text or "xformers" in text:
        return "sdpa_efficient"
    if text == "sdpa":
        return "sdpa"
    return "flash_attention_3" if "fa3" in text or "attn3" in text else "flash_attention_2"


def _optimizer(row: Row) -> str:
    name = _text(row, "optimizer")
    if name and "adam" not in name and "8bit" not in name:
        raise Unmapped(f"an optimizer that egobench does not know: {row['optimizer']}")
    text = _text(row, "optimizer", "notes")
    if "8bit" in text or "8-bit adam" in text:
        return "adamw_8bit_paged" if "paged" in text else "adamw_8bit"
    return "adamw_fused" if "fused adam" in text or "adamw_fused" in text or "fused=true" in text else "adamw"
