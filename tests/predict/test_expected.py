"""From a cell to a setting: shapes, lengths, machine; and the reason where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from egobench.models.internvl import EGOTINY, config_of
from egobench.predict.expected import Surroundings, machine_of, surroundings_of
from egobench.predict.forecast import Forecaster
from egobench.predict.lengths import LEAST_TEXT, Samples
from egobench.predict.models import Unknown, shape_of_dims, shape_of_file
from egobench.predict.setting import Setting
from egobench.predict.shapes import shape_of
from egobench.records.predicted import Predicted
from egobench.spec.dims import NAMED
from egobench.spec.workload import Lengths
from tests.predict.cells import axes, site, workload

HERE = Path(".")
MEASURED = Lengths(mean=300, p90=340, longest=420, supervised=6)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_named_model_has_the_shapes_of_the_model_built_from_it(name: str) -> None:
    assert shape_of_dims(NAMED[name]) == shape_of(config_of(NAMED[name]).to_dict())


def known(**changes: Any) -> Surroundings:
    found = surroundings_of(workload(**changes), site(), HERE)
    assert not isinstance(found, Unknown), found.because
    return found


def setting(**changes: Any) -> Setting:
    return known().setting(axes(workload(), **changes))


def test_without_lengths_every_sample_is_as_long_as_it_may_be() -> None:
    found = setting(padding="dynamic")
    assert (found.longest.num_rows, found.longest.width, found.longest.num_images) == (2, 512, 2)
    assert found.longest.num_scores == 2 * 512**2
    assert found.longest.num_supervised == 2 * (512 - 256)
    assert found.usual.num_supervised == 2 * 16  # answers are as long as those that are asked for
    assert found.machine.gpu.name == "A100-80GB SXM"
    assert found.axes["micro_batch_size"] == 2
    around = known()
    assert "512 tokens" in around.samples(axes(workload())).assumed
    least = around.least(found)
    assert (least.width, least.num_supervised) == (256 + LEAST_TEXT, 2)


def test_padding_to_the_maximum_is_certain() -> None:
    around = known()
    found = around.setting(axes(workload(), padding="max"))
    assert around.least(found).width == found.longest.width == 512


def test_measured_lengths() -> None:
    samples = Samples(256, 512, 16, MEASURED)
    assert samples.assumed == ""
    longest = samples.longest(4, "dynamic")
    assert (longest.width, longest.num_supervised) == (420, 24)
    usual = samples.usual(4, "dynamic")
    assert 300 < usual.width < 340  # the longest of four
    assert usual.num_real == 4 * 300
    assert samples.usual(1, "dynamic").width == 300
    assert 340 < samples.usual(100, "dynamic").width < 420
    assert samples.usual(4, "bucketed").width == 304
    assert samples.longest(4, "max").width == samples.usual(4, "max").width == 512
    assert samples.least(4, "dynamic").width == 420


def test_packed_rows() -> None:
    samples = Samples(256, 512, 16, MEASURED)
    usual, longest, least = samples.usual(4, "packed"), samples.longest(4, "packed"), samples.least(4, "packed")
    assert (usual.num_rows, usual.width, usual.num_images, usual.num_real) == (1, 1200, 4, 1200)
    assert usual.num_scores > 4 * 300**2  # lengths differ
    assert least.width == 420 + 3 * 300 <= longest.width == 420 + 3 * 340
    unknown = Samples(256, 512, 16)
    assert unknown.longest(4, "packed").width == 4 * 512
    assert unknown.longest(4, "packed").num_scores == 4 * 512**2


def test_lengths_are_cut_at_the_maximum() -> None:
    samples = Samples(256, 320, 16, MEASURED)
    assert samples.longest(2, "dynamic").width == samples.usual(50, "dynamic").width == 320


def test_another_image_size_is_another_shape() -> None:
    found = setting(image_px=224)
    assert found.shape.num_image_tokens == 64
    assert found.shape.llm == setting().shape.llm


def test_a_network_is_known_where_the_site_says_so() -> None:
    machine = machine_of(site(network_gb_per_s=25.0, gpus_per_node=4))
    assert not isinstance(machine, Unknown)
    assert (machine.node_bytes_per_s, machine.gpus_per_node) == (25e9, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "cpu", "gpu": None}, "run on a CPU"),
        ({"gpu": None}, "names no `gpu:`"),
        ({"gpu": "RTX 9999"}, "'RTX 9999' is not one of egobench/hardware.py (A100-40GB SXM, "),
    ],
)
def test_no_number_for_an_unknown_machine(changes: dict[str, Any], words: str) -> None:
    found = surroundings_of(workload(), site(**changes), HERE)
    assert isinstance(found, Unknown)
    assert words in found.because


def config(**changes: Any) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((EGOTINY / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = read
        for parent in parents:
            part = part[parent]
        if value is None:
            del part[last]
        else:
            part[last] = value
    return read


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    found = known(model={"path": str(tmp_path)}, image_px=64).setting(axes(workload(), image_px=64))
    assert found.shape == shape_of(config())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_config__hidden_size": -128}, "text_config.hidden_size is -128, not a positive whole number"),
        ({"text_config__hidden_size": None}, "text_config.hidden_size is missing"),
        ({"vision_config__patch_size": None, "text_config__vocab_size": 0}, "vision_config.patch_size is missing, "),
        ({"vision_config": None}, "vision_config is missing"),
        ({"downsample_ratio": 3}, "downsample_ratio is 3, not within 0 and 1"),
        ({"model_type": "llava"}, "the formulas know model_type 'internvl', not 'llava'"),
        ({"text_config__model_type": "gemma"}, "the formulas know text models qwen2, qwen3, llama, not 'gemma'"),
        ({"vision_feature_layer": -2}, "an earlier vision layer"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_read_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(**changes)))
    found = shape_of_file(path)
    assert isinstance(found, Unknown)
    assert found.because.startswith(f"{path}: ")
    assert words in found.because


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ("[]", "holds no mapping")])
def test_a_broken_config(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    found = shape_of_file(tmp_path / "config.json")
    assert isinstance(found, Unknown) and words in found.because
    gone = shape_of_file(tmp_path / "gone.json")
    assert isinstance(gone, Unknown) and "is not on this machine" in gone.because


def test_an_image_that_is_longer_than_a_sample_may_be() -> None:
    found = Forecaster.made(workload(), site(), HERE)
    assert isinstance(found, Forecaster)
    forecast = found.of(axes(workload(), max_length=200))
    assert forecast.verdict is None and forecast.because == "an image is 256 tokens, max_length is 200"
    forecast = found.of(axes(workload(), method="lora", lora_targets="("))
    assert forecast.because.startswith("lora_targets '(' is no regular expression: ")


def test_a_record_holds_what_says_something() -> None:
    assert Predicted(because="no").model_dump() == {"because": "no"}
    found = Predicted(verdict="fits", predicted_low_bytes=1.0, usable_bytes=3.0)
    assert Predicted.model_validate_json(found.model_dump_json()) == found
    assert found.margin_bytes == 2
