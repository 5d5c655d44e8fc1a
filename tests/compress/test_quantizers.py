"""Every kind of quantization writes a whole folder that transformers reads, and that still is the model."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import CPU, NUM_IMAGE_TOKENS, drawn, egoworld, error, logits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from egobench.compress import CALIBRATED, QUANTIZERS
from egobench.compress.awq import of_one_length
from egobench.compress.calibration import CalibrationSet
from egobench.compress.load import held_bytes, load_quantized
from egobench.errors import EnvironmentProblem, InvalidInput
from egobench.evaluate.ask import Generation, Questions, generate, judge, share
from egobench.models.internvl import EGOTINY, build
from egobench.models.prompt import encode_all
from egobench.spec.quantization import Quantization
from egobench.train.resolve import resolve

KINDS = sorted(QUANTIZERS)
NUM_LLM_LAYERS, NUM_LAYERS = 21, 42
HAS_VNNI = "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
BOUNDS = {
    # Measured on egotiny: 0.005, 0.012, 0.026, 0.031, 0.05, 0.03, 0.07; bfloat16 alone: 0.005. The products of
    # int8_dynamic saturate on a CPU without VNNI: 0.035 there, 0.055 with all parts.
    "int8": 0.01, "int8_dynamic": 0.02 if HAS_VNNI else 0.045, "fp8": 0.04, "fp8_static": 0.045, "awq": 0.075,
    "gptq": 0.05, "int4": 0.1,
}  # fmt: skip
"""Most that so many bits may change the logits, relative."""
SCALES = {"torchao": "_weight_scale", "compressed-tensors": "weight_scale", "awq": "scales", "gptq": "scales"}

FRESH = """
import json, sys, torch
from transformers import AutoModelForImageTextToText
torch.set_num_threads(1)
inputs = torch.load(sys.argv[1], weights_only=True)
made = {}
for folder in sys.argv[3:]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        made[folder] = model(**inputs).logits
torch.save(made, sys.argv[2])
"""


def quantize(kind: str, source: Path, target: Path, drawn_set: CalibrationSet | None, **how: Any) -> dict[str, Any]:
    facts: dict[str, Any] = resolve(QUANTIZERS, kind, "kind")(source, target, Quantization(**how), drawn_set)
    return facts


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def calibration(cache: Path) -> CalibrationSet:
    return drawn(egoworld(cache, "train", 64), 16)


@pytest.fixture(scope="module")
def asked(cache: Path) -> CalibrationSet:
    return drawn(egoworld(cache, "validation", 64), 8)


@pytest.fixture(scope="module")
def plain(asked: CalibrationSet) -> torch.Tensor:
    return logits(build({"name": "egotiny"}, attention="sdpa", dtype=torch.float32, device=CPU, seed=0).model, asked)


class Made:
    """Quantized folders, each made once."""

    def __init__(self, root: Path, calibration: CalibrationSet) -> None:
        self.root, self.calibration = root, calibration
        self.facts: dict[str, dict[str, Any]] = {}

    def __call__(self, kind: str) -> Path:
        if kind not in self.facts:
            given = self.calibration if kind in CALIBRATED else None
            self.facts[kind] = quantize(kind, EGOTINY, self.root / kind, given)
        return self.root / kind


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, calibration: CalibrationSet) -> Made:
    return Made(tmp_path_factory.mktemp("made"), calibration)


def quantized_names(folder: Path) -> set[str]:
    """Name the layers that a folder holds in fewer than 16 bits, as its file does."""
    found = set()
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        for key in list(tensors.keys()):
            is_float8 = key.endswith(".weight") and tensors.get_slice(key).get_dtype() == "F8_E4M3"
            if is_float8 or key.endswith((".qweight", "._weight_qdata")):
                found.add(key.rpartition(".")[0])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_the_model_as_far_as_the_bits_reach(
    kind: str, made: Made, asked: CalibrationSet, plain: torch.Tensor
) -> None:
    found = error(made(kind), asked, plain)
    assert BOUNDS[kind] / 20 < found < BOUNDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_one_broken_scale_is_seen(
    kind: str, made: Made, asked: CalibrationSet, plain: torch.Tensor, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(made(kind), broken)
    path = broken / "model.safetensors"
    with safe_open(path, framework="pt") as tensors:
        told = tensors.metadata()
    state = load_file(path)
    method = json.loads((broken / "config.json").read_text())["quantization_config"]["quant_method"]
    [name] = [name for name in state if name.endswith(f"layers.1.mlp.down_proj.{SCALES[method]}")]
    state[name] = state[name] * 2
    save_file(state, path, metadata=told)
    assert error(broken, asked, plain) > BOUNDS[kind]


def test_calibrated_scales_are_better_than_rounding(made: Made, asked: CalibrationSet, plain: torch.Tensor) -> None:
    rounded = error(made("int4"), asked, plain)
    assert error(made("awq"), asked, plain) < 0.9 * rounded
    assert error(made("gptq"), asked, plain) < 0.9 * rounded


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_are_those_of_the_folder(kind: str, made: Made) -> None:
    folder = made(kind)
    facts = made.facts[kind]
    names = quantized_names(folder)
    assert len(names) == facts["num_quantized"] == sum(facts["quantized"].values()) == NUM_LLM_LAYERS
    assert all("language_model" in name and "lm_head" not in name for name in names)
    assert facts["num_left"] == sum(facts["left"].values()) == NUM_LAYERS - NUM_LLM_LAYERS
    assert facts["left"]["lm_head"] == 1 and "model.vision_tower.encoder.layer.*.mlp.fc1" in facts["left"]
    assert facts["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert facts["size_bytes"] < 0.45 * facts["source_bytes"]
    assert facts["bits"] == (4 if kind in ("awq", "gptq", "int4") else 8)
    assert facts["group_size"] == (128 if facts["bits"] == 4 else None)
    assert facts["calibration"] == (made.calibration.facts() if kind in CALIBRATED else None)
    assert facts["quantize_time_s"] > 0 and " " in facts["library"]
    json.dumps(facts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_whole(kind: str, made: Made) -> None:
    folder = made(kind)
    for path in EGOTINY.glob("*.json"):
        if path.name != "config.json":
            assert (folder / path.name).read_bytes() == path.read_bytes()
    assert AutoTokenizer.from_pretrained(folder).decode([5]) == "<IMG_CONTEXT>"
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"]
    assert config.pop("dtype") == config["text_config"].pop("dtype") == config["vision_config"].pop("dtype")
    parent = json.loads((EGOTINY / "config.json").read_text())
    del parent["dtype"], parent["text_config"]["dtype"], parent["vision_config"]["dtype"]
    assert config == parent
    # What is left is in 16 bit, and nothing lies beside the folder.
    state = load_file(folder / "model.safetensors")
    kept = [tensor for name, tensor in state.items() if "scale" not in name and tensor.is_floating_point()]
    assert {tensor.dtype for tensor in kept} <= {torch.bfloat16, torch.float16, torch.float8_e4m3fn}
    assert sorted(path.name for path in folder.parent.iterdir() if path.name.startswith(".")) == []


@pytest.mark.slow
def test_transformers_alone_reads_every_kind(made: Made, asked: CalibrationSet, tmp_path: Path) -> None:
    folders = [made(kind) for kind in KINDS]
    inputs = next(iter(asked.inputs()))
    given, answered = tmp_path / "given.pt", tmp_path / "answered.pt"
    torch.save(inputs, given)
    command = [sys.executable, "-c", FRESH, str(given), str(answered), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = torch.load(answered, weights_only=True)
    for folder in folders:
        with torch.no_grad():
            ours = load_quantized(folder, CPU, torch.float32).model(**inputs).logits
        assert torch.allclose(theirs[str(folder)], ours, atol=1e-4), folder.name


def test_nothing_is_left_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quantize("int4", EGOTINY, tmp_path / "int4", None)
    assert [path.name for path in tmp_path.iterdir()] == ["int4"]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_what_the_facts_promise(kind: str, made: Made, asked: CalibrationSet) -> None:
    whole = held_bytes(build({"name": "egotiny"}, attention="sdpa", dtype=torch.bfloat16, device=CPU, seed=0).model)
    model = load_quantized(made(kind), CPU, torch.bfloat16).model
    smaller = 0.7 if made.facts[kind]["bits"] == 4 else 0.8
    assert held_bytes(model) < smaller * whole
    inputs = next(iter(asked.inputs()))
    with torch.no_grad():
        model(**{**inputs, "pixel_values": inputs["pixel_values"].to(torch.bfloat16)})
    if made.facts[kind]["in_memory"] == "packed":
        assert held_bytes(model) < smaller * whole
    else:
        assert held_bytes(model) > 0.99 * whole


@pytest.mark.parametrize("kind", ["int8", "int8_dynamic", "fp8", "fp8_static"])
def test_all_parts_where_they_are_asked_for(
    kind: str, calibration: CalibrationSet, asked: CalibrationSet, plain: torch.Tensor, tmp_path: Path
) -> None:
    facts = quantize(kind, EGOTINY, tmp_path / kind, calibration, parts="all")
    names = quantized_names(tmp_path / kind)
    assert facts["num_quantized"] == len(names) == NUM_LAYERS
    assert facts["left"] == {}
    assert error(tmp_path / kind, asked, plain) < 1.6 * BOUNDS[kind]


def test_smaller_groups_are_finer(made: Made, asked: CalibrationSet, plain: torch.Tensor, tmp_path: Path) -> None:
    facts = quantize("int4", EGOTINY, tmp_path / "fine", None, group_size=32)
    assert facts["group_size"] == 32
    state = load_file(tmp_path / "fine" / "model.safetensors")
    [scales] = [tensor for name, tensor in state.items() if name.endswith("layers.0.mlp.down_proj.scales")]
    assert tuple(scales.shape) == (384 // 32, 128)
    assert error(tmp_path / "fine", asked, plain) < 0.95 * error(made("int4"), asked, plain)


def test_awq_learns_from_every_question(calibration: CalibrationSet, tmp_path: Path) -> None:
    """GPTQModel alone keeps the last of rows of unlike length, and says so nowhere but in a log."""
    rows = list(of_one_length(calibration, 5))
    lengths = {len(item.input_ids) for item in calibration.encoded}
    assert len(lengths) > 1
    assert {row["input_ids"].numel() for row in rows} == {max(lengths)}
    for row, item in zip(rows, calibration.encoded, strict=True):
        assert tuple(row["input_ids"][0, : len(item.input_ids)].tolist()) == item.input_ids
        assert int((row["input_ids"] == 5).sum()) == NUM_IMAGE_TOKENS  # text fills up: no picture is promised twice
    scales = []
    for number in (4, 8):
        part = CalibrationSet(
            calibration.samples[number - 2 : number] + calibration.samples[-1:],
            calibration.encoded[number - 2 : number] + calibration.encoded[-1:],
            calibration.pictures[[number - 2, number - 1, -1]], 0, "",
        )  # fmt: skip
        quantize("awq", EGOTINY, tmp_path / "awq", part)
        state = load_file(tmp_path / "awq" / "model.safetensors")
        scales.append(torch.cat([state[name].flatten().float() for name in sorted(state) if name.endswith("scales")]))
    assert not torch.equal(*scales)


@pytest.mark.parametrize("kind", ["int8", "int8_dynamic"])
def test_torchao_tensors_are_described_by_the_names_in_the_file(kind: str, made: Made) -> None:
    """VLLM puts tensors together so; transformers writes descriptions under other names."""
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    path = made(kind) / "model.safetensors"
    with safe_open(path, framework="pt") as tensors:
        told = tensors.metadata()
    whole, left_over = unflatten_tensor_state_dict(load_file(path), told)
    assert left_over == {}
    assert sum(type(tensor).__name__ == "Int8Tensor" for tensor in whole.values()) == NUM_LLM_LAYERS


def damaged(folder: Path, what: str) -> Path:
    """Return a copy of egotiny with something wrong."""
    shutil.copytree(EGOTINY, folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if what == "cut off":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif what == "not safetensors":
        weights.write_bytes(b"\x00" * 4096)
    elif what == "no weights":
        weights.unlink()
    elif what == "no config":
        config.unlink()
    elif what == "not JSON":
        config.write_text("{")
    elif what == "another family":
        config.write_text(json.dumps({"model_type": "bert"}))
    return folder


@pytest.mark.parametrize("kind", ["int8", "awq"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut off", r"model\.safetensors: damaged"),
        ("not safetensors", r"model\.safetensors: damaged"),
        ("no weights", r"no safetensors file in"),
        ("no config", r"no config\.json in"),
        ("not JSON", r"config\.json: not JSON"),
        ("another family", r"is a 'bert' model; allowed: internvl"),
    ],
)
def test_a_bad_source_is_refused(
    kind: str, what: str, message: str, calibration: CalibrationSet, tmp_path: Path
) -> None:
    source = damaged(tmp_path / "source", what)
    with pytest.raises(InvalidInput, match=message):
        quantize(kind, source, tmp_path / "target", calibration)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_quantized_already_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"quantized already \(torchao\)"):
        quantize("fp8", made("int8"), tmp_path / "target", None)


def test_a_group_that_does_not_fit_and_parts_that_cannot_be_are_told_together(
    calibration: CalibrationSet, tmp_path: Path
) -> None:
    shutil.copytree(EGOTINY, tmp_path / "source")
    config = json.loads((EGOTINY / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 416
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput) as caught:
        quantize("awq", tmp_path / "source", tmp_path / "target", calibration, parts="all")
    first, second = caught.value.mistakes
    assert (first.where, first.allowed) == ("quantization.parts", "allowed: llm")
    assert second.what == "128 does not divide intermediate_size 416" and second.allowed == "allowed: 32"


@pytest.mark.parametrize("kind", sorted(CALIBRATED))
def test_a_calibrated_kind_without_a_set_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"{kind} needs a calibration set"):
        quantize(kind, EGOTINY, tmp_path / "target", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_told(
    kind: str, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=rf"^{kind} needs \w+: pip install 'egobench\[\w+\]'$"):
        quantize(kind, EGOTINY, tmp_path / "target", calibration)


@pytest.mark.parametrize("kind", ["fp8_static", "gptq"])
def test_a_failure_half_way_leaves_nothing(kind: str, calibration: CalibrationSet, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text("{}")  # of an earlier attempt
    # Image tokens without their picture: the model itself refuses the first question.
    blind = CalibrationSet(calibration.samples, calibration.encoded, calibration.pictures[:0], 0, "")
    with pytest.raises((ValueError, RuntimeError)):
        quantize(kind, EGOTINY, tmp_path / "target", blind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int8_dynamic", "fp8", "gptq"])
def test_answers_stay_what_they_were(kind: str, made: Made, cache: Path, tmp_path: Path) -> None:
    data = egoworld(cache, "validation", 256)
    points = {}
    for name, folder in (("plain", EGOTINY), (kind, made(kind))):
        loaded = load_quantized(folder, CPU, torch.float32)
        encoded = encode_all(data.samples, loaded.tokenizer, loaded.num_image_tokens, 128)
        rows = [int(sample.meta["image_index"]) for sample in encoded.samples]
        questions = Questions(
            encoded.samples, encoded.encoded, lambda indices, r=rows: data.stored[[r[i] for i in indices]]
        )
        how = Generation(64, 32, loaded.pad_token_id, loaded.end_token_id)
        answers, _ = generate(
            loaded.model, loaded.tokenizer, questions, share(questions, 0, 1), how, lambda _: contextlib.nullcontext()
        )
        points[name] = judge(questions, answers, tmp_path / f"{name}.jsonl")["em"]
    assert points["plain"] > 80
    assert abs(points[kind] - points["plain"]) <= 2
