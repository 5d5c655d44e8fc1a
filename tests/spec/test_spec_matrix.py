"""A matrix and what it names are read together; all mistakes come at once, each at its place."""

import shutil
from pathlib import Path

import pytest

from egobench.errors import InvalidInput
from egobench.spec.command import kind_of, schema_command, validate_command
from egobench.spec.matrix import load_matrix
from egobench.spec.pieces import load_site, load_workload

WORKLOAD = """why: test
model: {name: egotiny}
data: {format: egoworld, domain: workshop, num_train: 10, num_validation: 10}
recipe: {num_steps: 10, learning_rate: 1.0e-3, max_length: 96}
image_px: 64
"""
MATRIX = """name: small
why: test
axes:
  workload: [w]
  precision: [fp32, bf16]
"""


def place(folder: Path, matrix: str = MATRIX, workload: str | None = WORKLOAD) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(matrix)
    if workload is not None:
        (folder / "benchmarks").mkdir(exist_ok=True)
        (folder / "benchmarks" / "w.yaml").write_text(workload)
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        load_matrix(path)
    return [str(one).replace(f"{path.parent}/", "") for one in caught.value.mistakes]


def test_a_good_matrix(tmp_path: Path) -> None:
    loaded = load_matrix(place(tmp_path))
    assert loaded.matrix.axes == {"workload": ("w",), "precision": ("fp32", "bf16")}
    assert loaded.site_name == "local"
    assert loaded.workloads["w"].recipe.num_steps == 10
    assert loaded.text == MATRIX


def test_all_mistakes_of_all_files_at_their_places(tmp_path: Path) -> None:
    matrix = """name: "a b"
why: yes
site: locl
axes:
  workload: [w, x, 3]
  strategy: [single, fsdp2]
  compile: [off, blocks]
  gpus: [1, 2.0, 0, "4"]
  learning_rate: [1e-5, 3]
  precision: bf16
  attnetion: [eager]
  padding: [max, max]
zip:
  - {gpus: [1, 2], num_accumulation_steps: [2]}
include:
  - {workload: w, strategy: [ddp], method: loora}
exclude:
  - where: {strategy: ddp, gpsu: 2}
  - {where: {}, because: ""}
baseline: {precision: fp64}
targets: {throughput: {at_last: 2}}
trials: 0
variants: [{name: small, kind: awk}]
drills: [{where: {strategy: ddp}, kind: boom}]
nme: 3
depends:
  - {where: {gpus: 4}, parent: {gpsu: 2}}
  - {where: {gpus: 4}, parent: {}, needs: okay}
  - {where: {gpus: 4}, parent: {gpus: [1, 2]}}
  - {where: {}, needs: end}
  - 3
"""
    workload = (
        WORKLOAD.replace("num_validation", "num_validaton").replace("1.0e-3", "1e-3") + "defaults: {padding: mx}\n"
    )
    found = mistakes(place(tmp_path, matrix, workload))
    starts = [
        ("matrix.yaml:1:7: name: 'a b' cannot be a name", ""),
        ("matrix.yaml:2:6: why: true is not text", "YAML reads yes as true; quote it: 'yes'"),
        ("matrix.yaml:3:7: site: there is no site 'locl'", "did you mean 'local'?"),
        ("matrix.yaml:5:17: axes.workload[1]: there is no workload 'x'", "workloads here: w"),
        ("matrix.yaml:5:20: axes.workload[2]: 3 is not text", "quote it: '3'"),
        (
            "matrix.yaml:6:22: axes.strategy[1]: 'fsdp2' is not a strategy; allowed: single, ddp, fsdp, ",
            "did you mean 'fsdp'?",
        ),
        ("matrix.yaml:7:13: axes.compile[0]: false is not text", "YAML reads off as false; quote it: 'off'"),
        ("matrix.yaml:8:13: axes.gpus[1]: 2.0 is not a whole number", "write 2"),
        ("matrix.yaml:8:18: axes.gpus[2]: 0 is out of range", "allowed: at least 1"),
        ("matrix.yaml:8:21: axes.gpus[3]: '4' is not a whole number", "write 4"),
        ("matrix.yaml:9:19: axes.learning_rate[0]: '1e-5' is not a number", "YAML reads it as text; write 1.0e-5"),
        ("matrix.yaml:10:14: axes.precision: 'bf16' is not a list", "write [bf16]"),
        ("matrix.yaml:11:3: axes.attnetion: 'attnetion' is not a known axis", "did you mean 'attention'?"),
        ("matrix.yaml:12:18: axes.padding[1]: 'max' stands twice", ""),
        ("matrix.yaml:14:5: zip[0]: the lists differ in length: gpus 2, num_accumulation_steps 1", ""),
        ("matrix.yaml:14:6: zip[0].gpus: 'gpus' also stands in axes", ""),
        ("matrix.yaml:16:29: include[0].strategy: a list; one value", ""),
        ("matrix.yaml:16:44: include[0].method: 'loora' is not a method", "did you mean 'lora'?"),
        ("matrix.yaml:18:5: exclude[0]: 'because' is missing", ""),
        ("matrix.yaml:18:28: exclude[0].where.gpsu: 'gpsu' is not a known axis", "did you mean 'gpus'?"),
        ("matrix.yaml:19:13: exclude[1].where: the selection is empty", ""),
        ("matrix.yaml:19:26: exclude[1].because: the text is empty", ""),
        ("matrix.yaml:20:23: baseline.precision: 'fp64' is not a precision", ""),
        ("matrix.yaml:21:23: targets.throughput: 'at_least' is missing", ""),
        ("matrix.yaml:21:24: targets.throughput.at_last: 'at_last' is not a known key", "did you mean 'at_least'?"),
        ("matrix.yaml:22:9: trials: 0 is out of range", "allowed: at least 1"),
        ("matrix.yaml:23:32: variants[0].kind: 'awk' is not one of the values", "did you mean 'awq'?"),
        ("matrix.yaml:24:41: drills[0].kind: 'boom' is not one of the values", "allowed: oom, host_oom"),
        ("matrix.yaml:25:1: nme: 'nme' is not a known key", "did you mean 'name'?"),
        ("matrix.yaml:27:33: depends[0].parent.gpsu: 'gpsu' is not a known axis", "did you mean 'gpus'?"),
        ("matrix.yaml:28:32: depends[1].parent: names no axis; axis: value, where the parent differs", ""),
        ("matrix.yaml:28:43: depends[1].needs: 'okay' is not one of the values", "allowed: ok, end"),
        ("matrix.yaml:29:39: depends[2].parent.gpus: a list; one value", "a cell has one parent"),
        ("matrix.yaml:30:5: depends[3]: 'parent' is missing", ""),
        ("matrix.yaml:30:13: depends[3].where: the selection is empty", ""),
        ("matrix.yaml:31:5: depends[4]: 3 is not a mapping", ""),
        ("benchmarks/w.yaml:3:59: data.num_validaton: 'num_validaton' is not a known key", "'num_validation'?"),
        ("benchmarks/w.yaml:4:40: recipe.learning_rate: '1e-3' is not a number", "write 1.0e-3"),
        ("benchmarks/w.yaml:6:21: defaults.padding: 'mx' is not a padding", "did you mean 'max'?"),
    ]
    assert len(found) == len(starts), "\n".join(found)
    unseen = list(found)
    for start, end in starts:
        match = [line for line in unseen if line.startswith(start) and end in line]
        assert len(match) == 1, (start, end, unseen)
        unseen.remove(match[0])
    lines = [int(one.split(":")[1]) for one in found if one.startswith("matrix")]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ("name: x\nwhy: y\n", "matrix.yaml:1:1: there is nothing to run"),
        ("name: x\nwhy: y\naxes: {precision: [fp32]}\n", "matrix.yaml:3:7: axes: no workload is named"),
        ("name: x\nwhy: y\naxes: 3\n", "matrix.yaml:3:7: axes: 3 is not a mapping"),
        ("name: x\nwhy: y\nzip: 3\n", "matrix.yaml:3:6: zip: 3 is not a list"),
        ("name: x\nwhy: y\nzip: [3]\n", "matrix.yaml:3:7: zip[0]: 3 is not a mapping"),
        ("name: x\nwhy: y\ninclude: [3]\n", "include[0]: 3 is not a mapping"),
        ("name: x\nwhy: y\naxes: {workload: [[w]]}\n", "axes.workload[0]: a list is not text"),
        ("name: x\nwhy: y\naxes: {workload: []}\n", "axes.workload: the list is empty"),
        ("name: x\nwhy: y\naxes: {workload: [../../etc/passwd]}\n", "'../../etc/passwd' cannot be a name"),
        ("name: ../x\nwhy: y\naxes: {workload: [w]}\n", "name: '../x' cannot be a name"),
        ("name: x\nwhy: y\nsite: ../x\naxes: {workload: [w]}\n", "site: '../x' cannot be a name"),
        ("name: x\nwhy: y\nsite: 3\naxes: {workload: [w]}\n", "site: 3 is not text"),
        ("name: x\nwhy: y\nworkloads: 3\naxes: {workload: [w]}\n", "workloads: 3 is not a mapping"),
        ("name: x\nwhy: y\nworkloads: {v: 3}\naxes: {workload: [v]}\n", "workloads.v: 3 is not a mapping"),
        (MATRIX + "targets: {throughput: {at_least: 2}}\n", "targets: targets compare with a baseline"),
        (MATRIX + "zip: [{gpus: [1, 1], padding: [max, max]}]\n", "zip[0]: the same values stand together twice"),
        (MATRIX + "zip: [{gpus: [1]}, {gpus: [2]}]\n", "zip[1].gpus: 'gpus' also stands in zip[0]"),
        (MATRIX + "drills: [{where: {gpus: 1}, kind: oom, rank: -1}]\n", "drills[0].rank: -1 is out of range"),
        (MATRIX + "exclude: [{where: 3, because: x}]\n", "exclude[0].where: 3 is not a mapping"),
    ],
)
def test_one_mistake(tmp_path: Path, matrix: str, words: str) -> None:
    found = mistakes(place(tmp_path, matrix))
    assert any(words in line for line in found), found
    assert len(found) == 1, found


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: egotiny", "name: egotinny", "model.name: 'egotinny' is not a model"),
        ("{name: egotiny}", "{}", "model: neither name nor path"),
        ("{name: egotiny}", "{name: egotiny, path: x}", "model: both name and path"),
        ("egotiny", "internvl3-8b", "no weights of internvl3-8b come with egobench; write weights: random"),
        ("format: egoworld", "format: egowrld", "data.format: 'egowrld' is not a data format"),
        ("domain: workshop, ", "", "data: 'domain' is missing"),
        ("domain: workshop, ", "domain: workshop, path: x, ", "data.path: egoworld is generated"),
        ("egoworld, domain: workshop", "egothink", "data: 'path' is missing"),
        (
            "image_px: 64",
            "image_px: 64\ndefaults: {num_steps: 3}",
            "defaults.num_steps: 'num_steps' cannot be a default",
        ),
        ("image_px: 64", "image_px: 64\ndefaults: 3", "defaults: 3 is not a mapping"),
        ("num_steps: 10", "num_steps: ten", "recipe.num_steps: 'ten' is not a whole number"),
        ("recipe:", "recpe:", "'recpe' is not a known key"),
    ],
)
def test_mistakes_in_a_workload(tmp_path: Path, old: str, new: str, words: str) -> None:
    found = mistakes(place(tmp_path, workload=WORKLOAD.replace(old, new)))
    assert any(line.startswith("benchmarks/w.yaml:") and words in line for line in found), found


def test_a_matrix_named_as_a_workload(tmp_path: Path) -> None:
    assert "this is a matrix, not a workload" in mistakes(place(tmp_path, workload=MATRIX))[0]


def test_an_inline_workload_needs_no_axis(tmp_path: Path) -> None:
    inline = "".join(f"    {line}\n" for line in WORKLOAD.splitlines())
    matrix = f"name: x\nwhy: y\nworkloads:\n  mine:\n{inline}axes: {{gpus: [1]}}\n"
    loaded = load_matrix(place(tmp_path, matrix, None))
    assert loaded.only_workload == "mine"
    assert set(loaded.workloads) == {"mine"}


def test_paths_of_a_workload_start_from_its_file(tmp_path: Path) -> None:
    data = "data: {format: egothink, path: ../data/x}"
    text = "\n".join(data if line.startswith("data") else line for line in WORKLOAD.splitlines())
    loaded = load_matrix(place(tmp_path, workload=text))
    assert loaded.workloads["w"].data.path == "../data/x"
    assert loaded.rebased_workloads()["w"].data.path == "data/x"


def test_sites(tmp_path: Path) -> None:
    (tmp_path / "slurm_templates").mkdir()
    site = tmp_path / "slurm_templates" / "here.yaml"
    site.write_text("why: x\nlauncher: slurm\ndevice: cuda\ngpu: A100-80GB SXM\ngpus_per_node: 8\nmodules: [cuda]\n")
    (tmp_path / "benchmarks").mkdir()
    nested = tmp_path / "benchmarks" / "m.yaml"
    nested.write_text("site: here\n" + MATRIX)
    (tmp_path / "benchmarks" / "w.yaml").write_text(WORKLOAD)
    assert load_matrix(nested).site.modules == ("cuda",)
    site.write_text(site.read_text().replace("A100-80GB SXM", "A100-80GB"))
    with pytest.raises(InvalidInput, match=r"here.yaml:4:6: gpu: 'A100-80GB' is not in .* did you mean 'A100-80GB "):
        load_site(site)


def test_kinds_are_told_by_their_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place(tmp_path)
    assert kind_of(path) == "matrix"
    assert kind_of(tmp_path / "benchmarks" / "w.yaml") == "workload"
    assert validate_command([path, tmp_path / "benchmarks" / "w.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{path}: a valid matrix"
    (tmp_path / "odd.yaml").write_text("a: 1\n")
    with pytest.raises(InvalidInput, match="cannot tell what kind of file") as caught:
        validate_command([tmp_path / "odd.yaml", path, tmp_path / "none.yaml"])
    assert len(caught.value.mistakes) == 2
    with pytest.raises(InvalidInput, match="did you mean 'site'"):
        schema_command("sit")


def test_a_workload_alone(tmp_path: Path) -> None:
    place(tmp_path)
    assert load_workload(tmp_path / "benchmarks" / "w.yaml").image_px == 64
    shutil.copy(tmp_path / "benchmarks" / "w.yaml", tmp_path / "v.yaml")
    with pytest.raises(InvalidInput):
        load_workload(tmp_path / "u.yaml")
