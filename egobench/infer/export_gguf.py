"""The LLM as a GGUF file, and the reading of it back, tensor by tensor.

Names, hyperparameters and tokenizer as llama.cpp's own converter writes them (`convert_hf_to_gguf.py`, class
`Qwen2Model`), which is not on PyPI. The vision tower is no part of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from egobench.errors import InvalidInput, Mistake
from egobench.models.internvl import LoadedModel
from egobench.models.parts import head, llm

Matrix = npt.NDArray[np.float32]

_FILE_TYPES: Final = {"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
_ARCHITECTURES: Final = {"qwen2": "QWEN2", "qwen3": "QWEN3"}
_HEAD: Final = "output.weight"
_LARGEST_F16: Final = 65504.0


def write_gguf(loaded: LoadedModel, path: Path, format: str) -> dict[str, Any]:
    """Write the LLM in `f16`, `q8_0` or `q4_0`; return facts for the record.

    Vectors are kept in float32, matrices whose rows are no multiple of a block (32) in float16, and the head of a q4_0
    file in q8_0 (llama.cpp has it in q6_k, which the `gguf` package cannot write).

    Raises:
        InvalidInput: an LLM that the writer does not know.
    """
    import gguf

    text = loaded.model.config.text_config
    if text.model_type not in _ARCHITECTURES:
        what = f"an LLM of type {text.model_type!r}"
        raise InvalidInput([Mistake("config.json", what, f"allowed: {', '.join(_ARCHITECTURES)}")])
    architecture = getattr(gguf.MODEL_ARCH, _ARCHITECTURES[text.model_type])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_file_type(getattr(gguf.LlamaFileType, _FILE_TYPES[format]))
    _add_shapes(writer, text, loaded.name)
    _add_tokenizer(writer, loaded)
    types: dict[str, int] = {}
    for name, matrix in tensors(loaded, architecture):
        kind = _type_of(name, matrix, format)
        writer.add_tensor(name, gguf.quants.quantize(matrix, kind), raw_dtype=kind)
        types[kind.name] = types.get(kind.name, 0) + 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"format": "gguf", "architecture": gguf.MODEL_ARCH_NAMES[architecture], "tensors": types}


def tensors(loaded: LoadedModel, architecture: Any) -> Iterator[tuple[str, Matrix]]:
    """Yield the LLM's tensors in float32 under GGUF's names."""
    import gguf

    names = gguf.get_tensor_name_map(architecture, loaded.model.config.text_config.num_hidden_layers)
    held = {f"model.{name}": tensor for name, tensor in llm(loaded.model).state_dict().items()}
    if not loaded.model.config.tie_word_embeddings:
        held["lm_head.weight"] = head(loaded.model).weight
    for name, tensor in held.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InvalidInput([Mistake(name, "is a tensor that GGUF has no name for")])
        yield found, tensor.detach().float().cpu().numpy()


def check_gguf(loaded: LoadedModel, path: Path) -> dict[str, Any]:
    """Read the file back and compare every tensor with the model's; return the largest error over its bound.

    Raises:
        InvalidInput: naming every tensor that is missing, surplus, of another shape, or further off than its format
            allows.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = getattr(gguf.MODEL_ARCH, _ARCHITECTURES[loaded.model.config.text_config.model_type])
    found = {one.name: one for one in reader.tensors}
    mistakes: list[Mistake] = []
    worst = 0.0
    for name, wanted in tensors(loaded, architecture):
        one = found.pop(name, None)
        if one is None:
            mistakes.append(Mistake(f"{path}: {name}", "is missing"))
            continue
        made = gguf.quants.dequantize(one.data, one.tensor_type).reshape(-1)
        if tuple(reversed(one.shape.tolist())) != wanted.shape:
            mistakes.append(Mistake(f"{path}: {name}", f"has shape {one.shape.tolist()}, not {wanted.shape[::-1]}"))
            continue
        share = float((np.abs(made - wanted.reshape(-1)) / _bound(wanted.reshape(-1), one.tensor_type.name)).max())
        worst = max(worst, share)
        if not share <= 1:
            mistakes.append(Mistake(f"{path}: {name}", f"is off by {share:.2f} times what its format allows"))
    mistakes += [Mistake(f"{path}: {name}", "is no tensor of the model") for name in found]
    if mistakes:
        raise InvalidInput(mistakes)
    return {"num_tensors": len(reader.tensors), "largest_error_share": worst}


def _bound(values: Matrix, format: str) -> Matrix:
    """Return how far each number may be off: half a step of its block, and the rounding of the step to float16."""
    tiny = np.float32(2.0**-24)
    if format in ("F32", "F16"):
        return np.abs(values) * np.float32(2.0**-11 if format == "F16" else 0) + tiny
    blocks = np.abs(values.reshape(-1, 32))
    largest = blocks.max(axis=1, keepdims=True)
    # q8_0: 127 steps to each side. q4_0: from -8 to 7 with the largest at -8, so that its opposite is cut by a step.
    step = largest / (127 if format == "Q8_0" else 8)
    allowed = step * (0.5 if format == "Q8_0" else 1.0) + blocks * np.float32(2.0**-10) + largest * 2.0**-10 + tiny
    bound: Matrix = allowed.reshape(-1).astype(np.float32)
    return bound


def _type_of(name: str, matrix: Matrix, format: str) -> Any:
    import gguf

    if matrix.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    if format == "f16" or matrix.shape[-1] % 32:
        if np.abs(matrix).max() > _LARGEST_F16:
            raise InvalidInput([Mistake(name, "has numbers that float16 cannot hold")])
        return gguf.GGMLQuantizationType.F16
    kind = "Q8_0" if name == _HEAD else format.upper()
    return getattr(gguf.GGMLQuantizationType, kind)


def _add_shapes(writer: Any, text: Any, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope_parameters["rope_theta"])


def _add_tokenizer(writer: Any, loaded: LoadedModel) -> None:
    import gguf

    tokenizer = loaded.tokenizer
    words = {index: word for word, index in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    size = loaded.model.config.text_config.vocab_size
    kinds = [
        gguf.TokenType.CONTROL
        if index in special
        else gguf.TokenType.NORMAL
        if index in words
        else gguf.TokenType.UNUSED
        for index in range(size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([words.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types(kinds)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_eos_token_id(loaded.end_token_id)
    writer.add_pad_token_id(loaded.pad_token_id)
