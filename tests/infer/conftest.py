"""egotiny prepared for every runtime that runs here, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asked import CPU, Asked, Fineness

from egobench.data.egoworld.generate import Recipe, generate
from egobench.errors import EnvironmentProblem
from egobench.infer.folder import copy_tokenizer
from egobench.infer.runtimes import ort, ov, runtime_of
from egobench.infer.session import Facts, Session
from egobench.infer.silent_openvino import silent
from egobench.models.internvl import EGOTINY, LoadedModel, build
from egobench.models.prompt import encode_all


@pytest.fixture(scope="session")
def egotiny() -> LoadedModel:
    torch.set_num_threads(1)
    return build({"name": "egotiny"}, attention="sdpa", dtype=torch.float32, device=CPU, seed=0)


@pytest.fixture(scope="session")
def asked(egotiny: LoadedModel) -> Asked:
    data = generate(Recipe("home", "validation", 6, 3, 64))
    encoded = encode_all(data.samples, egotiny.tokenizer, 16, 256).encoded
    assert len({item.prompt_length for item in encoded}) > 1
    return Asked(encoded, data.images[[sample.meta["image_index"] for sample in data.samples]])


Folders = dict[tuple[str, str], Path]


@pytest.fixture(scope="session")
def session_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Session]:
    """(runtime, kind) -> egotiny in it; skips where a package is missing."""
    made: Folders = {}

    def folder_of(runtime: str, kind: str) -> Path:
        if runtime.startswith("torch"):
            return EGOTINY
        if (runtime, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{runtime}-{kind}")
            if kind == "as_trained":
                runtime_of(runtime).prepare(EGOTINY, folder, kind, Fineness())
            else:
                quantized(runtime, folder_of(runtime, "as_trained"), folder, kind)
            made[runtime, kind] = folder
        return made[runtime, kind]

    def open_it(runtime: str, kind: str) -> Session:
        try:
            folder = folder_of(runtime, kind)
        except EnvironmentProblem as problem:
            pytest.skip(str(problem))
        return runtime_of(runtime).open_session(folder, CPU, 1, torch.float32)

    return open_it


def quantized(runtime: str, whole: Path, folder: Path, kind: str) -> None:
    """Quantize what was exported already: most of the time goes into the export."""
    Facts.read(whole).write(folder)
    copy_tokenizer(whole, folder)
    if runtime == "onnxruntime":
        ort.quantize(whole, folder, kind, Fineness())
    else:
        openvino = silent("openvino")
        graphs = {name: openvino.Core().read_model(whole / name) for name in (ov.VISION, ov.DECODER)}
        ov.write(graphs, folder, kind, Fineness())
