"""Anybody's table of published runs: read by its columns, scored row by row, refused with every mistake at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.predictor import table
from benchmarks.predictor.columns import Unmapped, read_columns
from benchmarks.predictor.gpus import gpu_named
from benchmarks.predictor.models import MODELS, plain_name, shape_named
from benchmarks.predictor.published import ANCHORS, read
from egobench.errors import InvalidInput
from egobench.predict.constants import SOFTWARE

HEAD = "model,gpu,n_gpus,method,batch_per_gpu,seq_len,sharding,act_ckpt,mem_GB,mem_kind,tokens_per_s_per_gpu,notes\n"


def row(**cells: str) -> dict[str, str]:
    return {
        "model": "Llama-2-7b-hf", "gpu": "A100-80GB", "n_gpus": "8", "method": "full", "batch_per_gpu": "1",
        "seq_len": "4096", "act_ckpt": "True",
    } | cells  # fmt: skip


@pytest.mark.skipif(not ANCHORS.is_dir(), reason=f"the published rows are not here: {ANCHORS}")
def test_the_committed_page_is_made_again() -> None:
    """If this fails: python -m benchmarks.predictor.table."""
    assert (table.HERE / "table.md").read_text(encoding="utf-8") == table.committed()


def test_a_table_of_strangers_is_scored(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.csv"
    theirs.write_text(
        HEAD
        + "meta-llama/Llama-2-7b-hf,NVIDIA A100-SXM4-80GB,8,full,2,4096,ZeRO-3,True,40,nvidia-smi,3000,\n"
        + "Qwen/Qwen2.5-7B-Instruct,H100,1,LoRA r8,4,2048,,True,30,max_memory_allocated,9000,\n"
        + "a-model-of-theirs,H100,1,full,4,2048,,True,30,,,\n"
        + "Qwen2.5-7B,TPU v5,1,full,4,2048,,True,30,,,\n"
        + "Qwen3-30B-A3B,H100,8,full,4,2048,FSDP,True,30,,,\n"
        + "Qwen2.5-7B,H100,8,full,4,2048,FSDP4 TP2,True,30,,,\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.predictor.table", str(theirs)], capture_output=True, text=True, check=True
    )
    page = done.stdout
    assert page.startswith(f"# {theirs}")
    assert "| (no source_csv) | nvidia_smi | 1 |" in page and "| (no source_csv) | allocated | 1 |" in page
    assert "| (no source_csv) | 2 |" in page  # tokens/s
    for reason in (
        "the model's shapes are not known: a-model-of-theirs", "no one kind of GPU: TPU v5", "a mixture of experts",
        "tensor, pipeline or context parallel",
    ):  # fmt: skip
        assert f"| 1 | {reason} |" in page


def test_every_mistake_of_a_table_is_named_at_once(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.csv"
    theirs.write_text(
        HEAD.replace("notes", "software")
        + "Llama-2-7B,A100,0,full,1,4096,,,many,,,hf_ligr\nLlama-2-7B,A100,1,full,one,long,,,,,,\n"
    )
    with pytest.raises(InvalidInput) as caught:
        read(theirs)
    text = str(caught.value)
    assert all(
        part in text
        for part in (":2", "n_gpus: '0'", "mem_GB: 'many'", "did you mean 'hf_liger'", ":3", "batch_per_gpu", "seq_len")
    )
    theirs.write_text("model,gpu\nLlama-2-7B,A100\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.predictor.table", str(theirs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert all(f"no column {name}" in done.stderr for name in ("n_gpus", "method", "batch_per_gpu", "seq_len"))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"sharding": "FSDP SHARD_GRAD_OP"}, {"strategy": "fsdp", "sharding": "shard_grad_op"}),
        ({"sharding": "HSDP"}, {"strategy": "fsdp", "sharding": "hybrid_shard"}),
        ({"sharding": "DeepSpeed ZeRO-3 offload"}, {"strategy": "zero3", "offload": "parameters", "precision": "bf16"}),
        ({"sharding": "ZeRO-3, optimizer offload"}, {"strategy": "zero3", "offload": "optimizer"}),
        ({"sharding": "FSDP2 (no reshard after forward)"}, {"strategy": "fsdp", "sharding": "shard_grad_op"}),
        ({"sharding": ""}, {"strategy": "ddp"}),
        ({"n_gpus": "1", "sharding": "FSDP"}, {"strategy": "single"}),
        ({"method": "QLoRA r64"}, {"method": "qlora", "lora_rank": 64, "precision": "bf16_pure"}),
        ({"method": "LoRA r8 qv"}, {"method": "lora", "lora_rank": 8, "lora_targets": r".*self_attn\.[qv]_proj"}),
        ({"method": "full", "precision_mode": "amp bf16"}, {"precision": "bf16"}),
        ({"method": "full", "weights_dtype": "fp32", "precision_mode": "bf16"}, {"precision": "bf16"}),
        ({"precision_mode": "bf16 + float8"}, {"precision": "fp8"}),
        ({"precision_mode": "fp16"}, {"precision": "fp16"}),
        ({"precision_mode": "fp16 pure"}, {"precision": "bf16_pure"}),
        ({"act_ckpt": "selective(op)"}, {"checkpointing": "selective"}),
        ({"act_ckpt": "False"}, {"checkpointing": "none"}),
        ({"attention": "eager"}, {"attention": "eager"}),
        ({"attention": "SDPA"}, {"attention": "sdpa"}),
        ({"seq_len": "<=2048"}, {"padding": "dynamic"}),
        ({"notes": "paged 8bit AdamW"}, {"optimizer": "adamw_8bit_paged", "loss": "plain"}),
        ({"notes": "own loop, chunked cross-entropy"}, {"loss": "chunked"}),
    ],
)  # fmt: skip
def test_columns_say_what_a_run_is(cells: dict[str, str], expected: dict[str, object]) -> None:
    software, axes = read_columns(row(**cells))
    assert software in SOFTWARE
    assert {name: axes[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [("ok", "ok"), ("", "ok"), ("oom", "oom"), ("OOM at step 2", "oom"), ("Out of memory", "oom")],
)
def test_a_run_that_failed_is_known_by_its_status(status: str, expected: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.csv"
    theirs.write_text(HEAD.replace("notes", "status") + f"Llama-2-7B,A100,1,full,1,4096,,True,,,,{status}\n")
    assert [one.status for one in read(theirs)] == [expected]


@pytest.mark.parametrize(
    "cells",
    [
        {"act_ckpt": "as in the recipe"},
        {"optimizer": "GaLore"},
        {"method": "LoRA int8"},
        {"method": "prefix tuning"},
        {"sharding": "FSDP8 CP2"},
    ],
)
def test_what_is_no_setting_is_left_out(cells: dict[str, str]) -> None:
    with pytest.raises(Unmapped):
        read_columns(row(**cells))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Llama 2 7 B", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("qwen-1_8b-chat", "qwen-1.8b"),
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen-2.5-7b"),
        ("Nous-Hermes-Llama2-70B-GPTQ", "llama-2-70b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("InternVL-Chat-V1.5(26B)", "internvl-1.5"),
        ("OpenGVLab/InternVL3-8B", "internvl-3-8b"),
        ("nanoVLM-222M (SigLIP2-B/16-256 + SmolLM2-135M)", "nanovlm-222m"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen-2.5-vl-7b"),
        ("liuhaotian/llava-v1.5-13b", "llava-1.5-13b"),
    ],
)
def test_a_model_has_many_names(name: str, key: str) -> None:
    assert shape_named(name) is MODELS[key]


def test_names_are_in_the_form_that_they_are_looked_up_by() -> None:
    assert [name for name in MODELS if plain_name(name) != name] == []


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB SXM"), ("A100", "A100-80GB SXM"), ("A100 80GB PCIe", "A100-80GB PCIe"),
        ("H200", "H200-141GB SXM"), ("H20-96GB", "H20-96GB"), ("NVIDIA L40S", "L40S-48GB"), ("L4", "L4-24GB"),
        ("RTX 6000 Ada", "RTX 6000 Ada-48GB"), ("RTX A6000", "RTX A6000-48GB"), ("A10G", "A10-24GB"),
        ("h100_80gb", "H100-80GB SXM"),
    ],
)  # fmt: skip
def test_a_gpu_has_many_names(name: str, key: str) -> None:
    assert gpu_named(name).name == key
