"""What cannot run here is written, and read back: GGUF, the folder that vLLM serves, TensorRT-LLM's layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from asked import Fineness

from egobench.errors import InvalidInput
from egobench.infer.runtimes import runtime_of
from egobench.models.internvl import EGOTINY, LoadedModel
from egobench.models.parts import llm


@pytest.fixture
def servable(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(EGOTINY, folder)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("kind", "bits"), [("as_trained", 16), ("int8", 8.5), ("int4", 4.5)])
def test_gguf_holds_the_llm(kind: str, bits: float, egotiny: LoadedModel, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    facts = runtime_of("llama_cpp").prepare(EGOTINY, tmp_path, kind, Fineness())
    reader = gguf.GGUFReader(tmp_path / "llm.gguf")
    assert facts["num_tensors"] == len(reader.tensors) == 3 + 12 * 3
    assert 0 < facts["largest_error_share"] <= 1
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen2" and fields["qwen2.block_count"] == 3
    assert fields["qwen2.attention.head_count_kv"] == 2 and fields["qwen2.rope.freq_base"] == 10_000
    assert fields["tokenizer.ggml.tokens"][egotiny.end_token_id] == "<|im_end|>"
    assert fields["tokenizer.ggml.eos_token_id"] == egotiny.end_token_id
    one = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    assert one.n_bytes == 128 * 384 * bits / 8
    wanted = llm(egotiny.model).layers[1].mlp.down_proj.weight.detach().numpy()
    made = gguf.quants.dequantize(one.data, one.tensor_type)
    error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert error < {16: 1e-3, 8.5: 0.02, 4.5: 0.2}[bits]


@pytest.mark.parametrize(("kind", "most"), [("as_trained", 2e-3), ("int8", 0.05)])
def test_transformers_reads_the_same_llm_out_of_a_gguf(
    kind: str, most: float, egotiny: LoadedModel, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    runtime_of("llama_cpp").prepare(EGOTINY, tmp_path, kind, Fineness())
    alone = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="llm.gguf", dtype=torch.float32).eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        made, wanted = alone(input_ids=ids).logits, egotiny.model(input_ids=ids).logits
    assert (made - wanted).norm() / wanted.norm() < most


def test_a_gguf_that_is_wrong_is_named(egotiny: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from egobench.infer.export_gguf import check_gguf, write_gguf

    write_gguf(egotiny, tmp_path / "llm.gguf", "q8_0")
    changed = egotiny.model.model.language_model.layers[0].mlp.up_proj.weight
    kept = changed.detach().clone()
    try:
        with torch.no_grad():
            changed[3, 5] += 0.5
        with pytest.raises(InvalidInput, match=r"blk\.0\.ffn_up\.weight: is off by"):
            check_gguf(egotiny, tmp_path / "llm.gguf")
    finally:
        with torch.no_grad():
            changed.copy_(kept)
    check_gguf(egotiny, tmp_path / "llm.gguf")


def test_vllm_gets_a_checked_folder_and_its_command(servable: Path, tmp_path: Path) -> None:
    facts = runtime_of("vllm").prepare(servable, tmp_path / "out", "as_trained", Fineness())
    assert facts["architecture"] == "InternVLForConditionalGeneration" and facts["quantization"] is None
    script = (tmp_path / "out" / "serve_vllm.sh").read_text()
    assert f"vllm serve {servable}" in script and "--host 127.0.0.1" in script


def test_everything_wrong_with_a_folder_is_told_at_once(servable: Path, tmp_path: Path) -> None:
    config = json.loads((servable / "config.json").read_text())
    config |= {"architectures": ["OtherModel"], "quantization_config": {"quant_method": "hqq"}}
    (servable / "config.json").write_text(json.dumps(config))
    (servable / "tokenizer.json").unlink()
    weights = servable / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InvalidInput) as told:
        runtime_of("vllm").prepare(servable, tmp_path / "out", "awq", Fineness())
    text = str(told.value)
    for words in ("OtherModel", "'hqq'", "tokenizer.json: is missing", "model.safetensors: cannot be read"):
        assert words in text
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_index_promises_is_missed(servable: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model.safetensors", "not.there": "model.safetensors"}}
    (servable / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match=r"not\.there: is in no file"):
        runtime_of("vllm").prepare(servable, tmp_path / "out", "as_trained", Fineness())


def test_tensorrt_llm_layouts_hold_the_llm(egotiny: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    facts = runtime_of("tensorrt_llm").prepare(EGOTINY, tmp_path, "as_trained", Fineness())
    held = load_file(tmp_path / "checkpoint" / "rank0.safetensors")
    assert facts["num_tensors"] == len(held) == 3 + 8 * 3
    block = llm(egotiny.model).layers[2]
    qkv = torch.cat([getattr(block.self_attn, name).weight for name in ("q_proj", "k_proj", "v_proj")])
    assert torch.equal(held["transformer.layers.2.attention.qkv.weight"], qkv.bfloat16())
    # The half that the activation gates is called fc, and the other one gate.
    assert torch.equal(held["transformer.layers.2.mlp.fc.weight"], block.mlp.gate_proj.weight.bfloat16())
    assert torch.equal(held["transformer.layers.2.mlp.gate.weight"], block.mlp.up_proj.weight.bfloat16())
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float32).eval()
    assert type(alone).__name__ == "Qwen2ForCausalLM"
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        made, wanted = alone(input_ids=ids).logits, egotiny.model(input_ids=ids).logits
    assert (made - wanted).norm() / wanted.norm() < 0.02  # bfloat16
    script = (tmp_path / "build_trt_llm.sh").read_text()
    for words in ("trtllm-build --checkpoint_dir", "--gather_generation_logits", "trtexec --onnx="):
        assert words in script
    assert facts["server"][0] == "trtllm-serve" and facts["built"] is False


def test_a_checkpoint_that_is_wrong_is_named(egotiny: LoadedModel, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from egobench.infer.export_trt_llm import check_checkpoint, write_checkpoint

    write_checkpoint(egotiny, tmp_path)
    assert check_checkpoint(tmp_path) == 27
    held = load_file(tmp_path / "rank0.safetensors")
    held["surplus"] = held.pop("transformer.ln_f.weight")
    held["lm_head.weight"] = held["lm_head.weight"][:-1].contiguous()
    save_file(held, tmp_path / "rank0.safetensors")
    with pytest.raises(InvalidInput) as told:
        check_checkpoint(tmp_path)
    text = str(told.value)
    assert "transformer.ln_f.weight: is missing" in text and "surplus: is no tensor" in text
    assert "lm_head.weight: is ('BF16', (767, 128))" in text
