"""Build a student: other depth, width or family than its teacher, the same tokens and pictures.

Only what keeps its meaning is inherited. A block works on a stream, so blocks are copied where the stream, its heads
and the family are the teacher's; a narrower stream begins at random, because no slice of the teacher's stream is one.
A feed-forward network is a sum over neurons, so a narrower one keeps the teacher's largest (norm of what a neuron
reads times norm of what it writes). Projections between widths are not invented.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import InternVLConfig, InternVLVisionConfig, LlamaConfig, Qwen2Config, Qwen3Config

from egobench.compress.teacher import Described, compare, describe, read_checkpoint
from egobench.errors import InvalidInput, Mistake
from egobench.models.internvl import FAMILY, LoadedModel, as_loaded, build, config_of, digest_of
from egobench.models.parts import core, head, llm, llm_blocks, projector, tower, tower_blocks
from egobench.spec.dims import NAMED
from egobench.spec.distillation import WHERE, Distillation, Student

FAMILIES: Final[dict[str, Any]] = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
PLACE: Final = f"{WHERE}.student"
_SHARED: Final = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "hidden_act",
    "tie_word_embeddings", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""What LLMs of every family have."""
_TEXT: Final = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "ffn": "intermediate_size", "tied": "tie_word_embeddings",
}  # fmt: skip
_TOWER: Final = {
    "tower_layers": "num_hidden_layers", "tower_hidden": "hidden_size", "tower_heads": "num_attention_heads",
    "tower_ffn": "intermediate_size",
}  # fmt: skip


def build_student(
    how: Distillation,
    teacher_folder: Path,
    base_folder: Path,
    *,
    attention: str | dict[str, str],
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> LoadedModel:
    """Build the student on `device`, in evaluation mode; on meta it has shapes only, and nothing is read.

    Args:
        how: Which student, and where it starts.
        teacher_folder: Checkpoint of the teacher.
        base_folder: Where a relative `path` starts from.
        attention: transformers' name of the kernel, or one for each part.
        dtype: Format of the weights.
        device: Where to build it.
        seed: Of what is drawn at random.

    Raises:
        InvalidInput: no such teacher, dimensions that no model has, another vocabulary, or other pictures.
    """
    teacher = describe(teacher_folder)
    if how.student.path is not None:
        folder = base_folder / Path(how.student.path).expanduser()
        own = describe(folder, f"{PLACE}.path")
        compare(teacher, own.tokenizer, own.config, f"{PLACE}.path")
        if device.type == "meta":
            return build({"path": str(folder)}, attention=attention, dtype=dtype, device=device, seed=seed)
        return read_checkpoint(folder, attention=attention, dtype=dtype, device=device, where=f"{PLACE}.path")
    config = student_config(how.student, teacher)
    compare(teacher, teacher.tokenizer, config, PLACE)
    torch.manual_seed(seed)
    with torch.device(device):
        network = FAMILY._from_config(config, attn_implementation=attention, dtype=dtype)
        positions = core(network).model.vision_tower.embeddings.position_embeddings
        if positions is not None:  # transformers leaves them at zero
            nn.init.normal_(positions, std=config.vision_config.initializer_range)
    if how.init == "teacher" and device.type != "meta":
        cpu = torch.device("cpu")
        inherit(network, read_checkpoint(teacher_folder, attention="eager", dtype=dtype, device=cpu).model)
    return as_loaded(network, teacher.tokenizer, f"student of {teacher_folder.name}", _digest(how, teacher_folder))


def _digest(how: Distillation, teacher_folder: Path) -> str:
    said = json.dumps([how.student.model_dump(), how.init])
    return hashlib.sha256(f"{digest_of(teacher_folder)} {said}".encode()).hexdigest()


def student_config(student: Student, teacher: Described) -> Any:
    """Make the configuration of a student that has no folder of its own.

    Raises:
        InvalidInput: dimensions that do not go together.
    """
    start = config_of(NAMED[student.name]) if student.name is not None else copy.deepcopy(teacher.config)
    mistakes: list[Mistake] = []
    text, vision = _text_config(student, start.text_config, mistakes), _vision_config(student, start, mistakes)
    if mistakes:
        raise InvalidInput(mistakes)
    given = {"downsample_ratio", "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy"}
    return InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=start.image_token_id,
        image_seq_length=start.image_seq_length, tie_word_embeddings=text.tie_word_embeddings,
        **{name: getattr(start, name) for name in given},
    )  # fmt: skip


def _text_config(student: Student, start: Any, mistakes: list[Mistake]) -> Any:
    changed = {name: value for own, name in _TEXT.items() if (value := getattr(student, own)) is not None}
    family = student.family or start.model_type
    if family not in FAMILIES:
        what = f"a teacher of family '{family}'"
        mistakes.append(Mistake(f"{PLACE}.family", what, f"allowed: {', '.join(FAMILIES)}"))
        return None
    if family == start.model_type:
        given = {name: value for name, value in start.to_dict().items() if name not in ("layer_types", "model_type")}
    else:
        given = {name: getattr(start, name) for name in _SHARED}
    given |= changed
    is_resized = "hidden_size" in changed or "num_attention_heads" in changed or family != start.model_type
    if is_resized and (family != "qwen2" or "head_dim" in given):
        given["head_dim"] = given["hidden_size"] // given["num_attention_heads"]
    heads, kv_heads = given["num_attention_heads"], given["num_key_value_heads"]
    if given["hidden_size"] % (2 * heads):
        what = f"{given['hidden_size']} hidden over {heads} heads"
        mistakes.append(Mistake(f"{PLACE}.heads", what, "allowed: heads of equal and even size"))
    if heads % kv_heads:
        what = f"{heads} heads over {kv_heads} of keys and values"
        mistakes.append(Mistake(f"{PLACE}.kv_heads", what, "allowed: a divisor of heads"))
    return None if mistakes else FAMILIES[family](**given)


def _vision_config(student: Student, start: Any, mistakes: list[Mistake]) -> Any:
    given = start.vision_config.to_dict()
    given |= {name: value for own, name in _TOWER.items() if (value := getattr(student, own)) is not None}
    if given["hidden_size"] % given["num_attention_heads"]:
        what = f"{given['hidden_size']} hidden over {given['num_attention_heads']} heads"
        mistakes.append(Mistake(f"{PLACE}.tower_heads", what, "allowed: a divisor of the tower's hidden size"))
        return None
    return InternVLVisionConfig(**{name: value for name, value in given.items() if name != "model_type"})


def spread(num_student: int, num_teacher: int) -> list[int]:
    """Return which of the teacher's layers a student copies: evenly spread, the first and the last kept.

    A single one is the first: its input is what the teacher's is.
    """
    if num_student == 1:
        return [0]
    return [round(layer * (num_teacher - 1) / (num_student - 1)) for layer in range(num_student)]


@torch.no_grad()
def inherit(student: Any, teacher: Any) -> list[str]:
    """Copy what keeps its meaning into a student; return which parts those are: tower, projector, words, llm."""
    own, other = student.config, teacher.config
    same_stream = own.text_config.hidden_size == other.text_config.hidden_size
    same_sight = _same(own.vision_config, other.vision_config, ("hidden_size", "num_attention_heads"))
    parts = []
    if same_sight and _fits(own.vision_config, other.vision_config):
        _copy(tower(student).get_submodule("embeddings"), tower(teacher).get_submodule("embeddings"))
        _copy(tower(student).get_submodule("layernorm"), tower(teacher).get_submodule("layernorm"))
        _copy_blocks(tower_blocks(student), tower_blocks(teacher), ("fc1",), "fc2")
        parts.append("tower")
    if same_stream and own.vision_config.hidden_size == other.vision_config.hidden_size:
        _copy(projector(student), projector(teacher))
        parts.append("projector")
    if same_stream:
        # Where the student's head is tied to its embedding, the embedding is what it inherits.
        for part in (head, lambda model: model.get_input_embeddings(), lambda model: llm(model).get_submodule("norm")):
            _copy(part(student), part(teacher))
        parts.append("words")
    shaping = ("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads")
    if _same(own.text_config, other.text_config, shaping) and _fits(own.text_config, other.text_config):
        _copy_blocks(llm_blocks(student), llm_blocks(teacher), ("gate_proj", "up_proj"), "down_proj")
        parts.append("llm")
    return parts


def _same(own: Any, other: Any, names: tuple[str, ...]) -> bool:
    return all(getattr(own, name) == getattr(other, name) for name in names)


def _fits(own: Any, other: Any) -> bool:
    """Return whether a part is nowhere larger than the teacher's."""
    return bool(own.num_hidden_layers <= other.num_hidden_layers and own.intermediate_size <= other.intermediate_size)


def _copy(own: nn.Module, other: nn.Module) -> None:
    own.load_state_dict(other.state_dict())


def _copy_blocks(own: list[nn.Module], other: list[nn.Module], readers: tuple[str, ...], writer: str) -> None:
    for block, number in zip(own, spread(len(own), len(other)), strict=True):
        source = other[number]
        state = source.state_dict()
        network = source.get_submodule("mlp")
        kept = _largest_neurons(network, readers, writer, _num_neurons(block, writer))
        state[f"mlp.{writer}.weight"] = state[f"mlp.{writer}.weight"][:, kept]
        for reader in readers:
            for name in (f"mlp.{reader}.weight", f"mlp.{reader}.bias"):
                if name in state:
                    state[name] = state[name][kept]
        block.load_state_dict(state)


def _num_neurons(block: nn.Module, writer: str) -> int:
    return int(block.get_parameter(f"mlp.{writer}.weight").shape[1])


def _largest_neurons(network: nn.Module, readers: tuple[str, ...], writer: str, number: int) -> torch.Tensor:
    """Return the neurons to keep, in their order."""
    size = network.get_parameter(f"{writer}.weight").float().norm(dim=0)
    for reader in readers:
        size = size * network.get_parameter(f"{reader}.weight").float().norm(dim=1)
    kept: torch.Tensor = size.topk(number).indices.sort().values
    return kept
