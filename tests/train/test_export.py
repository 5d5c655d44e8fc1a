"""What a trial leaves as `<trial>/model/` is the model that it trained, for transformers, PEFT and egobench alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from resuming import attempt, attempt_in_ranks, lines_of
from training_trials import ROUNDING, make_trial, one_rank, run_keeping_weights, setup_here, weights_apart
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from egobench.models.internvl import EGOTINY
from egobench.models.pixels import from_images
from egobench.records.store import TrialPaths
from egobench.records.trial import Trial
from egobench.spec.keep import Save

FRESH = """
import sys, torch
from transformers import AutoModelForImageTextToText
torch.set_num_threads(1)
inputs = torch.load(sys.argv[2], weights_only=True)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], attn_implementation="sdpa").eval()
if len(sys.argv) > 4:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, sys.argv[4]).eval()
with torch.no_grad():
    torch.save(model(**inputs).logits, sys.argv[3])
"""


def exporting(folder: Path, kind: str = "merged", **more: Any) -> Trial:
    recipe = {"num_steps": 2, "learning_rate": 3e-3}
    trial = make_trial(folder, **{"model": {"name": "egotiny"}, "recipe": recipe} | more)
    return trial.model_copy(update={"save": Save(export=kind)})  # type: ignore[arg-type]


def inputs_of(trial: Trial) -> dict[str, torch.Tensor]:
    dealt = setup_here(trial).feed.next()
    return {**dealt.batch.inputs(), "pixel_values": dealt.pixel_values}


def in_a_fresh_process(folder: Path, inputs: dict[str, torch.Tensor], scratch: Path, *adapters: Path) -> torch.Tensor:
    """Return the logits of an exported folder, by transformers and nothing of ours."""
    given, made = scratch / "given.pt", scratch / "made.pt"
    torch.save(inputs, given)
    command = [sys.executable, "-c", FRESH, *map(str, (folder, given, made, *adapters))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
    assert done.returncode == 0, done.stderr
    logits: torch.Tensor = torch.load(made, weights_only=True)
    return logits


def reloaded(folder: Path, inputs: dict[str, torch.Tensor], adapters: Path | None = None) -> torch.Tensor:
    """Return the logits of an exported folder."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").eval()
    if adapters is not None:
        model = PeftModel.from_pretrained(model, adapters).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def trained_logits(trial: Trial, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of the model as it was when training ended."""
    work = setup_here(trial)
    model = work.strategy.unwrap(work.model).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs_of(trial)).logits
    return logits


def test_a_full_model(tmp_path: Path) -> None:
    trial = exporting(tmp_path)
    _, weights = run_keeping_weights(trial, tmp_path, one_rank())
    folder = TrialPaths(tmp_path).model
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    state = loaded.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    logits = in_a_fresh_process(folder, inputs_of(trial), tmp_path)
    assert (logits - trained_logits(trial, weights)).abs().max() <= ROUNDING
    # Nothing but weights differs from where training began.
    for name in ("config.json", "tokenizer.json"):
        assert json.loads((folder / name).read_text()) == json.loads((EGOTINY / name).read_text())
    assert loaded.generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(folder).decode([5]) == "<IMG_CONTEXT>"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_pictures_are_prepared_as_in_training(tmp_path: Path) -> None:
    from PIL import Image

    run_keeping_weights(exporting(tmp_path, recipe={"num_steps": 1}), tmp_path, one_rank())
    processor = AutoImageProcessor.from_pretrained(TrialPaths(tmp_path).model)
    picture = Image.effect_noise((90, 70), 80).convert("RGB")
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    ours = from_images([picture], 64)
    assert torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize(
    "axes",
    [
        {"method": "lora"},
        {"method": "dora", "projector": "frozen"},
        {"method": "qlora"},
        {"method": "last_blocks", "loss": "chunked"},
    ],
    ids=lambda axes: axes["method"],
)
def test_adapters_are_merged(tmp_path: Path, axes: dict[str, Any]) -> None:
    trial = exporting(tmp_path, axes=axes)
    logits = trained(trial, tmp_path)
    merged = reloaded(TrialPaths(tmp_path).model, inputs_of(trial))
    assert (merged - logits).abs().max() <= ROUNDING
    assert not torch.allclose(merged, reloaded(EGOTINY, inputs_of(trial)), atol=1e-2)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_adapters_learned_is_not_rounded_to_16_bits(tmp_path: Path, method: str) -> None:
    """A short training moves a matrix by less than a 16-bit number of it can tell."""
    trial = exporting(tmp_path, "adapters", axes={"method": method, "precision": "bf16"})
    run_keeping_weights(trial, tmp_path / "adapters", one_rank())
    base = AutoModelForImageTextToText.from_pretrained(EGOTINY)
    for module in base.model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.bfloat16().float()  # as they were trained beside
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    frozen = base.state_dict()[name].clone()
    # PEFT itself, in fp32.
    merged = PeftModel.from_pretrained(base, TrialPaths(tmp_path / "adapters").model).merge_and_unload()
    expected = merged.state_dict()[name]
    merging = trial.model_copy(update={"save": Save(export="merged")})
    _, live = run_keeping_weights(merging, tmp_path / "merged", one_rank())
    found = AutoModelForImageTextToText.from_pretrained(TrialPaths(tmp_path / "merged").model).state_dict()[name]
    assert (found - expected).norm() < 0.01 * (expected - frozen).norm()
    kept = next(one for key, one in live.items() if key.endswith("layers.0.mlp.down_proj.base_layer.weight"))
    assert torch.equal(kept.float(), frozen)  # merging left the live model alone


def trained(trial: Trial, folder: Path) -> torch.Tensor:
    """Run a trial and return the logits of its model."""
    from egobench.train import loop

    kept: list[torch.Tensor] = []
    write = loop.export

    def keep(work: Any, paths: TrialPaths) -> None:
        with torch.no_grad():
            kept.append(work.strategy.unwrap(work.model).eval()(**inputs_of(trial)).logits)
        write(work, paths)

    loop.export = keep
    try:
        run_keeping_weights(trial, folder, one_rank())
    finally:
        loop.export = write
    return kept[0]


@pytest.mark.parametrize("projector", ["trained", "frozen"])
def test_adapters_alone_are_what_peft_reads(tmp_path: Path, projector: str) -> None:
    trial = exporting(tmp_path, "adapters", axes={"method": "lora", "projector": projector})
    logits = trained(trial, tmp_path)
    folder = TrialPaths(tmp_path).model
    assert not (folder / "model.safetensors").exists()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(EGOTINY)
    loaded = reloaded(EGOTINY, inputs_of(trial), folder)
    assert (loaded - logits).abs().max() <= ROUNDING
    if projector == "trained":
        assert (in_a_fresh_process(EGOTINY, inputs_of(trial), tmp_path, folder) - loaded).abs().max() <= ROUNDING


def test_a_method_without_adapters_leaves_its_whole_model(tmp_path: Path) -> None:
    run_keeping_weights(exporting(tmp_path, "adapters"), tmp_path, one_rank())
    assert AutoModelForImageTextToText.from_pretrained(TrialPaths(tmp_path).model)


def test_training_goes_on_from_an_exported_model(tmp_path: Path) -> None:
    """egobench reads what it left, as the model of another workload, and answers the same."""
    more = {"evaluation": {"num_questions": 12, "before": True}, "recipe": {"num_steps": 8}}
    drawn = {"name": "egotiny", "weights": "random"}
    first, _ = attempt(exporting(tmp_path, model=drawn, **more), tmp_path / "first")
    model = {"path": str(TrialPaths(tmp_path / "first").model)}
    second, _ = attempt(exporting(tmp_path, model=model, **more), tmp_path / "second")
    paths = [TrialPaths(tmp_path / name) for name in ("first", "second")]
    assert paths[0].predictions("after").read_text() == paths[1].predictions("before").read_text()
    assert first.after.em == second.before.em
    assert lines_of(tmp_path / "second")[0].loss < lines_of(tmp_path / "first")[0].loss


def test_nothing_is_left_unasked(tmp_path: Path) -> None:
    run_keeping_weights(make_trial(tmp_path, recipe={"num_steps": 1}), tmp_path, one_rank())
    assert not TrialPaths(tmp_path).model.exists()


@pytest.mark.slow
def test_spread_over_ranks(tmp_path: Path) -> None:
    """The same model from two ranks that hold all of it and from two that hold half each."""
    found = {}
    for strategy in ("ddp", "fsdp"):
        axes = {"strategy": strategy, "gpus": 2, "micro_batch_size": 2, "method": "lora"}
        said = attempt_in_ranks(exporting(tmp_path, axes=axes), tmp_path / strategy)
        assert said[0][0].num_parameters > 0
        found[strategy] = AutoModelForImageTextToText.from_pretrained(TrialPaths(tmp_path / strategy).model)
    states = [found[strategy].state_dict() for strategy in ("ddp", "fsdp")]
    assert weights_apart(*states) <= 1e-5
    began = AutoModelForImageTextToText.from_pretrained(EGOTINY).state_dict()
    changed = {name for name, tensor in states[0].items() if not torch.equal(tensor, began[name])}
    assert any("q_proj" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
    assert not any("vision_tower" in name or "lm_head" in name for name in changed)
