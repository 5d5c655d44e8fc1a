"""Published measurements of training as settings that can be predicted, each with what was measured.

Reads `measured_training.csv` (one row: one measured number of one run). A row that cannot be mapped keeps its reason.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.predictor.columns import OPTIONAL, REQUIRED, Row, Unmapped, read_columns, stated
from benchmarks.predictor.gpus import gpu_named
from benchmarks.predictor.models import shape_named
from egobench.errors import InvalidInput, Mistake, nearest
from egobench.predict.constants import SOFTWARE
from egobench.predict.setting import Batch, Machine, Setting
from egobench.predict.shapes import ModelShape
from egobench.spec.axes import AXES

ANCHORS: Final = Path(__file__).parents[2].parent / "shared" / "anchors"
"""Where the handed-out tables lie, next to the repository; they are no part of it."""
Kind = Literal["allocated", "reserved", "nvidia_smi", "soft", ""]
Status = Literal["ok", "oom", "soft", "not_run"]
_KINDS: Final[tuple[tuple[str, Kind], ...]] = (
    ("alloc", "allocated"),
    ("active", "allocated"),
    ("peak memory per gpu (torch)", "reserved"),
    ("reserved", "reserved"),
    ("cost about", "soft"),
)
"""What `mem_kind` has in it -> what was measured."""
_COUNT, _AMOUNT, _LENGTH = r"[1-9]\d*", r"(\d+\.?\d*(e[+-]?\d+)?)?", r".*\d.*"
_NUMBERS: Final = {
    "n_gpus": _COUNT + "|",
    "seq_len": _LENGTH,
    **dict.fromkeys(
        ("batch_per_gpu", "grad_accum", "images", "mem_GB", "tokens_per_s_per_gpu", "samples_per_s_total"), _AMOUNT
    ),
}
_MEANING: Final = {
    _COUNT + "|": "a whole number from 1 up, or nothing",
    _AMOUNT: "a number, or nothing",
    _LENGTH: "tokens of a sample",
}


@dataclass(frozen=True)
class Published:
    """One row."""

    source: str
    """File that the row was taken from."""
    line: int
    """In measured_training.csv."""
    row: Row
    setting: Setting | None
    unmapped: str
    """Why there is no setting."""
    status: Status
    memory_kind: Kind
    memory_bytes: float | None
    """Per GPU."""
    tokens_per_s: float | None
    """Over all GPUs, padding included."""

    @property
    def name(self) -> str:
        """Return the run in a few words."""
        row = self.row
        size = f"{row['n_gpus']}x{row['gpu']} batch {row['batch_per_gpu']} x {row['seq_len']}"
        return f"{row['model']} {row['method']}, {size}, {row['sharding']}, ckpt {row['act_ckpt']} {row['notes'][:30]}"


def read(path: Path = ANCHORS / "measured_training.csv", by_columns: bool = False) -> list[Published]:
    """Return every row, in order; `by_columns`: as if nobody had described the loops of their sources.

    Raises:
        InvalidInput: a column is missing, or a cell that should be a number is none.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = [dict.fromkeys(OPTIONAL, "") | {name: cell or "" for name, cell in row.items()} for row in reader]
        missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
    mistakes = [Mistake(f"{path}:1", f"no column {name}", f"needed: {', '.join(REQUIRED)}") for name in missing]
    mistakes = mistakes or [
        found for line, row in enumerate(rows, start=2) for found in _mistakes(f"{path}:{line}", row)
    ]
    if mistakes:
        raise InvalidInput(mistakes)
    return [_published(line, row, by_columns) for line, row in enumerate(rows, start=2)]


def _mistakes(where: str, row: Row) -> Iterator[Mistake]:
    for name, pattern in _NUMBERS.items():
        if not re.fullmatch(pattern, row[name].strip()):
            yield Mistake(where, f"{name}: {row[name]!r}", f"allowed: {_MEANING[pattern]}")
    if row["software"] and row["software"] not in SOFTWARE:
        hint = nearest(row["software"], SOFTWARE)
        yield Mistake(where, f"software: {row['software']!r}", f"allowed: nothing, {', '.join(SOFTWARE)}", hint)


def _published(line: int, row: Row, by_columns: bool) -> Published:
    setting, why = None, ""
    try:
        setting = _setting(row, by_columns)
    except Unmapped as reason:
        why = str(reason)
    kind = next((kind for part, kind in _KINDS if part in row["mem_kind"].lower()), "")
    per_gpu = _number(row, "tokens_per_s_per_gpu") if row["n_gpus"] else None
    return Published(
        source=row["source_csv"],
        line=line,
        row=row,
        setting=setting,
        unmapped=why,
        status=_status(row),
        # What is stated without a word of how is what a GPU shows.
        memory_kind=kind or ("nvidia_smi" if row["mem_GB"] else ""),
        memory_bytes=_memory(row),
        tokens_per_s=per_gpu * int(row["n_gpus"]) if per_gpu else None,
    )


def _status(row: Row) -> Status:
    text = row["status"]
    if text.startswith("SOFT") or text.startswith("derived"):
        return "soft"
    if re.search(r"\boom\b|out.of.memory", text, re.IGNORECASE) or "raw OOM" in row["notes"]:
        return "oom"
    return "not_run" if text == "N/A" else "ok"


def _memory(row: Row) -> float | None:
    found = _number(row, "mem_GB")
    return found * 1e9 if found and _status(row) in ("ok", "soft") else None


def _number(row: Row, column: str) -> float | None:
    return float(row[column]) if row[column] else None


def _setting(row: Row, by_columns: bool) -> Setting:
    shape, gpu = shape_named(row["model"]), gpu_named(row["gpu"])
    for name, what in (("batch_per_gpu", "no batch size"), ("n_gpus", "the number of GPUs is not stated")):
        if not row[name]:
            raise Unmapped(what)
    described = None if by_columns else DESCRIBED.get(row["source_csv"])
    software, axes = (described or read_columns)(row)
    axes = {name: axis.default for name, axis in AXES.items()} | stated(row) | axes
    batch = _batch(row, shape)
    machine = Machine(gpu, min(8, int(row["n_gpus"])), 200e9 if "A100" in gpu.name else 400e9)
    return Setting(shape, axes, batch, batch, machine, software)


def _batch(row: Row, shape: ModelShape) -> Batch:
    """Return the micro-batch: rows are packed, or the longest is what the row states."""
    widths = [int(number) for number in re.findall(r"\d+", row["seq_len"])]
    rows, width = int(float(row["batch_per_gpu"])), widths[0]
    images = rows * float(row["images"] or 0)
    if shape.tower.layers and not images:
        # LLaVA: one image a sample; InternVL: tiles up to 12 and a thumbnail, of which 4096 positions hold 13.
        images = rows * (13.0 if "internvl" in row["model"].lower() else 1.0)
    tokens = float(rows * width)
    return Batch(rows, width, images, tokens, tokens, tokens * width)


QKVO: Final = r".*self_attn\.[qkvo]_proj"
QKV: Final = r".*self_attn\.[qkv]_proj"


def _fms(row: Row) -> tuple[str, dict[str, Any]]:
    method, notes = row["method"], f"{row['notes']} {row['method']}"
    kind = "full" if method.startswith("full") else "lora"
    if "QLoRA" in method or "GPTQ" in method or "bnb" in method or "autogptq" in method:
        kind = "qlora"
    software = "fms"
    if row["model"].startswith("gpt_bigcode"):
        software = "fms_bigcode_bnb" if kind == "qlora" else "fms_bigcode"
    elif kind == "qlora":
        software = "fms_gptq" if "gptq" in notes.lower() else "fms_bnb"
        if "baseline" in notes and int(row["n_gpus"]) == 1:
            software = "fms_bnb_kbit"
    return software + ("_foak" if "foak" in notes else ""), {
        "strategy": "fsdp" if int(row["n_gpus"]) > 1 else "single",
        "method": kind,
        "precision": "bf16_pure" if kind != "qlora" else "bf16",
        "checkpointing": "full",
        "lora_targets": QKVO,
    }


def _mosaic(row: Row) -> tuple[str, dict[str, Any]]:
    precision = {"amp_bf16": "bf16", "bf16": "bf16_pure", "amp_fp8": "fp8"}[row["precision_mode"]]
    return "llm_foundry", {
        "strategy": "fsdp",
        "sharding": "shard_grad_op" if "GRAD_OP" in row["sharding"] else "full_shard",
        "method": "full",
        "precision": precision,
        "checkpointing": "full" if row["act_ckpt"] == "True" else "none",
    }


def _titan(row: Row) -> tuple[str, dict[str, Any]]:
    checkpointing = row["act_ckpt"].split("(")[0].split()
    value = {"selective": "every_2" if "layer" in checkpointing else "selective"}.get(checkpointing[0])
    return "torchtitan", {
        "strategy": "fsdp",
        "method": "full",
        "precision": "fp8" if "float8" in row["precision_mode"] else "bf16",
        "checkpointing": value or checkpointing[0],
        "attention": "sdpa_flash",
        # Its A100 tables do not say; the recipes of that time compiled.
        "compile": "blocks" if row["compile"] in ("1", "?") else "off",
        "optimizer": "adamw_fused",
    }


def _tune(row: Row) -> tuple[str, dict[str, Any]]:
    if row["act_ckpt"].startswith("per config"):
        raise Unmapped("flags as the recipe's file had them, which the table does not state")
    steps = ["baseline", "packed", "compile", "chunked", "activation checkpointing", "optimizer_in_bwd", "offloading"]
    text = row["act_ckpt"]
    if "optimizer_in_bwd" in text or "offload" in text or "AdamW8bit" in text or "same" in text:
        raise Unmapped("optimizer in the backward pass, or activations on the host")
    if "unpacked" in text:
        raise Unmapped("not packed, and the length of its samples is not stated")
    has = [name for name in steps if name in text]
    return "torchtune", {
        "strategy": "single",
        "method": "full",
        "precision": "bf16_pure",
        "checkpointing": "full" if "activation checkpointing" in has else "none",
        "loss": "chunked" if "chunked" in has or "activation checkpointing" in has else "plain",
        "compile": "blocks" if row["compile"] == "True" else "off",
        "attention": "sdpa_flash",
        "optimizer": "adamw_fused",
    }


def _swift(row: Row) -> tuple[str, dict[str, Any]]:
    method = row["method"]
    if int(row["n_gpus"]) > 1:
        raise Unmapped("layers of one model spread over GPUs (device_map)")
    if "int8" in method:
        raise Unmapped("8-bit matrices beside adapters")
    kind = "full" if method.startswith("full") else "qlora" if "int4" in method else "lora"
    is_remote = row["model"].startswith("qwen")
    software = "swift_gptq" if "gptq" in method else "swift_bnb" if "bnb" in method else "swift"
    return software + ("_qwen" if is_remote else ""), {
        "strategy": "single",
        "method": kind,
        "precision": "bf16_pure",
        "checkpointing": "full" if row["act_ckpt"] == "True" else "none",
        "padding": "dynamic",
        "lora_rank": 8,
        "lora_targets": ".*_proj" if "ALL" in method else QKV,
    }


def _litgpt(row: Row) -> tuple[str, dict[str, Any]]:
    if "Adapter" in row["method"]:
        raise Unmapped("a prefix adapter, which is no method of egobench")
    kind = "qlora" if "nf4" in row["method"] else "lora"
    is_sharded = int(row["n_gpus"]) > 1
    own = "litgpt_dq" if row["method"].endswith("dq") else "litgpt"
    return "litgpt_first" if is_sharded and kind == "lora" else own, {
        "strategy": "fsdp" if is_sharded else "single",
        "method": kind,
        "precision": "bf16_pure",
        # Its LoRA script of then: FSDP wraps and recomputes every block, one GPU keeps everything.
        "checkpointing": "full" if is_sharded else "none",
        "attention": "sdpa",
        "loss": "chunked",
        "lora_rank": 8,
        "lora_targets": r".*self_attn\.[qv]_proj",
    }


def _answer_ai(row: Row) -> tuple[str, dict[str, Any]]:
    is_offloaded, is_ddp = "offload" in row["sharding"], "DDP" in row["sharding"]
    return "fsdp_qlora", {
        "strategy": "ddp" if is_ddp else "fsdp",
        "offload": "parameters" if is_offloaded else "none",
        "method": "qlora" if row["method"] == "QLoRA" else "lora",
        "precision": "bf16_pure",
        "checkpointing": "full",
        "attention": "sdpa_flash",
        "lora_rank": 64,
        "lora_targets": r".*(q|k|v|up|down|gate)_proj",
    }


def _ibm(row: Row) -> tuple[str, dict[str, Any]]:
    return "torchtitan", {
        "strategy": "fsdp",
        "sharding": "hybrid_shard" if row["sharding"] == "HSDP" else "full_shard",
        "method": "full",
        "precision": "bf16_pure",
        "checkpointing": "full" if row["act_ckpt"] == "True" else "none",
        "compile": "whole",
        "attention": "sdpa_flash",
    }


def _internvl(row: Row) -> tuple[str, dict[str, Any]]:
    return "internvl", {
        "strategy": "zero3" if shape_named(row["model"]).llm.layers > 40 else "zero1",
        "method": "freeze" if row["method"].startswith("full") else "lora",
        "precision": "bf16",
        "checkpointing": "full",
        "projector": "trained",
    }


def _llava(row: Row) -> tuple[str, dict[str, Any]]:
    if row["method"].startswith("pretrain"):
        raise Unmapped("the projector alone is trained")
    return "internvl", {
        "strategy": row["sharding"].lower().replace("-", ""),
        "method": "freeze",
        "precision": "bf16",
        "checkpointing": "full",
        "projector": "trained",
    }


DESCRIBED: Final[dict[str, Callable[[Row], tuple[str, dict[str, Any]]]]] = {
    "fms_refs_a100_80gb.csv": _fms,
    "fms_refs_l40_48gb.csv": _fms,
    "mosaic_mpt_training.csv": _mosaic,
    "torchtitan.csv": _titan,
    "torchtune.csv": _tune,
    "swift2_benchmark_qwen.csv": _swift,
    "litgpt_resource_tables.csv": _litgpt,
    "fsdp_qlora_answerai_2024.csv": _answer_ai,
    "ibm_fms_fsdp.csv": _ibm,
    "internvl_finetune_gpu_mem.csv": _internvl,
    "vlm_misc_training.csv": _llava,
}
