"""The LLM in the two layouts that TensorRT-LLM reads, and the reading of them back.

`checkpoint/` is what `trtllm-build` makes an engine of, in releases that have it: one `config.json` and a safetensors
file a rank (docs/source/architecture/checkpoint.md; names as in tensorrt_llm/models/qwen/convert.py). `llm/` is the
LLM as a Hugging Face folder of its own, which `trtllm-serve` reads on the PyTorch backend, the only one of later
releases. The tower goes as ONNX, which `trtexec` builds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch

from egobench.errors import InvalidInput, Mistake
from egobench.infer.checkpoint_files import shapes_of
from egobench.models.internvl import LoadedModel
from egobench.models.parts import head, llm

_ARCHITECTURES: Final = {"qwen2": "Qwen2ForCausalLM"}
RANK: Final = "rank0.safetensors"
_BLOCK: Final = {
    "attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.fc.weight": "mlp.gate_proj.weight",  # the half that is gated by the activation
    "mlp.gate.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "post_layernorm.weight": "post_attention_layernorm.weight",
}
"""TensorRT-LLM's name in a block -> Hugging Face's; query, key and value are put into one beside these."""
_QKV: Final = ("q_proj", "k_proj", "v_proj")


def write_checkpoint(loaded: LoadedModel, folder: Path, dtype: str = "bfloat16") -> dict[str, Any]:
    """Write `config.json` and `rank0.safetensors` for one GPU; return facts for the record.

    Raises:
        InvalidInput: an LLM that the converter does not know.
    """
    from safetensors.torch import save_file

    text = loaded.model.config.text_config
    if text.model_type not in _ARCHITECTURES:
        what = f"an LLM of type {text.model_type!r}"
        raise InvalidInput([Mistake("config.json", what, f"allowed: {', '.join(_ARCHITECTURES)}")])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(loaded, dtype), indent=1) + "\n", encoding="utf-8")
    weights = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in renamed(loaded).items()}
    save_file(weights, folder / RANK)
    return {"architecture": _ARCHITECTURES[text.model_type], "dtype": dtype, "num_tensors": len(weights)}


def renamed(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Return the LLM's tensors under TensorRT-LLM's names, query, key and value in one."""
    held = llm(loaded.model).state_dict()
    made = {
        "transformer.vocab_embedding.weight": held["embed_tokens.weight"].clone(),
        "transformer.ln_f.weight": held["norm.weight"],
        "lm_head.weight": head(loaded.model).weight.detach().clone(),  # type: ignore[operator]
    }
    for block in range(loaded.model.config.text_config.num_hidden_layers):
        ours, theirs = f"layers.{block}.", f"transformer.layers.{block}."
        for kind in ("weight", "bias"):
            parts = [held[f"{ours}self_attn.{part}.{kind}"] for part in _QKV]
            made[f"{theirs}attention.qkv.{kind}"] = torch.cat(parts)
        made |= {theirs + name: held[ours + source] for name, source in _BLOCK.items()}
    return made


def _config(loaded: LoadedModel, dtype: str) -> dict[str, Any]:
    text = loaded.model.config.text_config
    return {
        "architecture": _ARCHITECTURES[text.model_type],
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "head_size": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "hidden_act": text.hidden_act,
        "intermediate_size": text.intermediate_size,
        "norm_epsilon": text.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": text.rope_parameters["rope_theta"],
        "qwen_type": text.model_type,
        "attn_bias": True,
        "tie_word_embeddings": bool(loaded.model.config.tie_word_embeddings),
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }


def check_checkpoint(folder: Path) -> int:
    """Check that the weights are those that the configuration describes; return how many tensors there are.

    Raises:
        InvalidInput: naming every tensor that is missing, surplus, or of another shape or format.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wanted, found = _wanted(config), shapes_of(folder)
    format = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[config["dtype"]]
    mistakes = [Mistake(f"{folder}: {name}", "is missing") for name in wanted.keys() - found.keys()]
    mistakes += [Mistake(f"{folder}: {name}", "is no tensor of the model") for name in found.keys() - wanted.keys()]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name] != (format, wanted[name]):
            mistakes.append(Mistake(f"{folder}: {name}", f"is {found[name]}, not {(format, wanted[name])}"))
    if mistakes:
        raise InvalidInput(sorted(mistakes, key=str))
    return len(found)


def _wanted(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    query = config["num_attention_heads"] * config["head_size"]
    qkv = query + 2 * config["num_key_value_heads"] * config["head_size"]
    wanted: dict[str, tuple[int, ...]] = {
        "transformer.vocab_embedding.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "transformer.ln_f.weight": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "attention.qkv.weight": (qkv, hidden), "attention.qkv.bias": (qkv,), "attention.dense.weight": (hidden, query),
        "mlp.fc.weight": (ffn, hidden), "mlp.gate.weight": (ffn, hidden), "mlp.proj.weight": (hidden, ffn),
        "input_layernorm.weight": (hidden,), "post_layernorm.weight": (hidden,),
    }  # fmt: skip
    for block in range(config["num_hidden_layers"]):
        wanted |= {f"transformer.layers.{block}.{name}": shape for name, shape in shapes.items()}
    return wanted


def write_llm(loaded: LoadedModel, folder: Path) -> None:
    """Write the LLM as a Hugging Face folder of its own, `Qwen2ForCausalLM`."""
    import copy

    from transformers import AutoModelForCausalLM

    text = copy.deepcopy(loaded.model.config.text_config)
    text.tie_word_embeddings = bool(loaded.model.config.tie_word_embeddings)
    text.eos_token_id, text.pad_token_id = loaded.end_token_id, loaded.pad_token_id
    family: Any = AutoModelForCausalLM
    with torch.device("meta"):
        shell = family.from_config(text, dtype=torch.bfloat16)
    weights = {f"model.{name}": tensor for name, tensor in llm(loaded.model).state_dict().items()}
    weights["lm_head.weight"] = head(loaded.model).weight.detach()  # type: ignore[operator]
    half = {name: tensor.to(torch.bfloat16).clone().contiguous() for name, tensor in weights.items()}
    if text.tie_word_embeddings:
        del half["lm_head.weight"]
    shell.save_pretrained(folder, state_dict=half)
    loaded.tokenizer.save_pretrained(folder)
