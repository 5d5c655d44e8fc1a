"""A site that contradicts itself is refused, with all its mistakes at once, each at its place."""

from pathlib import Path

import pytest

from egobench.errors import InvalidInput
from egobench.spec.pieces import load_site
from egobench.spec.site import Site
from egobench.spec.site_check import GOVERNED, OURS, SLURM_ONLY

SLURM = "why: test\nlauncher: slurm\ndevice: cuda\n"
LOCAL = "why: test\nlauncher: local\ndevice: cpu\n"


def mistakes(folder: Path, text: str) -> list[str]:
    path = folder / "site.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        load_site(path)
    return [str(one).replace(f"{path}:", "") for one in caught.value.mistakes]


def test_all_contradictions_at_once(tmp_path: Path) -> None:
    text = """why: test
launcher: slurm
device: cpu
gpu: A100-80GB SXM
gpu_request: none
gpu_type: a100
time_limit_min: 30
pack_min: 31
trial_time_limit_s: 1801
expected_trial_min: 40.0
signal_before_end_s: 1800
environment: {"NO-NAME": x}
sbatch: {gres: "gpu:1", job-name: x, --exclusive: true, "x y": 1}
container: {kind: pyxis, image: $HOME/x.sqsh, mounts: [data, "~/x"], overlays: [/o.ext3]}
account: "a\\nrm -rf ~"
setup: ["a\\nb"]
poll_every_s: -1.0
colour: red
"""
    found = mistakes(tmp_path, text)
    expected = [
        "4:6: gpu: a CPU site has no GPU",
        "6:1: gpu_type: gpu_request: none asks for no GPU",
        "8:11: pack_min: 31 min is too long; at most time_limit_min: 30 min",
        "9:21: trial_time_limit_s: 1801 s is too long; at most time_limit_min: 1800 s",
        "10:21: expected_trial_min: 40 min is too long",
        "11:1: signal_before_end_s: the warning 1800 s before the end leaves nothing of 1800 s",
        "12:15: environment.NO-NAME: 'NO-NAME' cannot be a variable",
        "13:10: sbatch.gres: 'gres' is what gpu_request: of the site is for; write gpu_request: instead",
        "13:25: sbatch.job-name: egobench decides on 'job-name' itself; remove it",
        "13:38: sbatch.--exclusive: '--exclusive' is not an option; a long option without its dashes",
        "13:57: sbatch.x y: 'x y' is not an option",
        "14:1: container: 'python' is missing",
        "14:33: container.image: '$HOME/x.sqsh' is taken as it stands; no variables, no ~",
        "14:56: container.mounts[0]: 'data' is not a mount; /host/folder",
        "14:62: container.mounts[1]: '~/x' is not a mount",
        "14:62: container.mounts[1]: '~/x' is taken as it stands",
        "14:70: container.overlays: pyxis has no overlays",
        "15:10: account: 'a\\nrm -rf ~' holds a line break",
        "16:9: setup[0]: more than one line",
        "17:15: poll_every_s: -1.0 is out of range",
        "18:1: colour: 'colour' is not a known key",
    ]
    assert len(found) == len(expected), "\n".join(found)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start), (line, start)


def test_a_local_site_ignores_nothing_silently(tmp_path: Path) -> None:
    found = mistakes(tmp_path, LOCAL + "partition: gpu\nsetup: [x]\nrequeue: true\n")
    assert [line.split(";")[0] for line in found] == [
        "4:1: partition: launcher: local has no use for partition",
        "5:1: setup: launcher: local has no use for setup",
        "6:1: requeue: launcher: local has no use for requeue",
    ]


def test_a_warning_by_default_can_be_too_early(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, SLURM + "time_limit_min: 1\n")
    assert found.startswith("4:1: time_limit_min: the warning 90 s before the end")


def test_a_broken_field_hides_no_contradiction(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "launcher: slurm\ndevice: tpu\nsbatch: {time: 5}\n")
    assert [line.split(": ")[0] for line in found] == ["1:1", "2:9", "3:10"]


def test_an_honest_site_passes(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    container = "container: {kind: singularity, image: /x.sif, mounts: ['/a:/b:ro', /c], overlays: ['/o.ext3:ro']}\n"
    path.write_text(SLURM + "python: /p\nscratch: $TMP\nsetup: ['a && b']\nsbatch: {exclusive: true}\n" + container)
    assert load_site(path).container is not None


def test_the_tables_speak_of_fields_that_there_are() -> None:
    assert set(SLURM_ONLY) <= set(Site.model_fields)
    assert set(GOVERNED.values()) <= set(Site.model_fields)
    assert not OURS & set(GOVERNED)


def test_the_page_has_every_field_with_its_default() -> None:
    """If this fails: correct the table at the end of docs/slurm.md."""
    page = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
    rows = {
        cells[0].strip(" `"): cells
        for line in page[page.index("## All fields") :].splitlines()
        if line.startswith("| `") and (cells := line.strip("|").split("|"))
    }
    assert list(rows) == list(Site.model_fields)
    for name, field in Site.model_fields.items():
        assert rows[name][2].strip() == (field.description or "").replace("\n", " "), name
        if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
            assert rows[name][1].strip(" `") in (str(field.default), f"{field.default}".removesuffix(".0"))
