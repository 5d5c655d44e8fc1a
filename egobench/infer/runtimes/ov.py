"""OpenVINO on a CPU: two graphs, the decoder with its cache inside, compressed by NNCF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from egobench.data.batches import Pixels
from egobench.errors import EnvironmentProblem
from egobench.infer.export_onnx import quiet
from egobench.infer.export_openvino import DECODER, VISION, convert_decoder, convert_vision
from egobench.infer.folder import copy_tokenizer, facts_of, load_plain
from egobench.infer.runtimes import check_kind, need
from egobench.infer.session import Facts, Fineness, HostSession, Ids, Session
from egobench.infer.silent_openvino import silent

PACKAGES = ("openvino",)
_EXPORTING: Final = ("openvino", "nncf")
_PRECISIONS: Final = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def prepare(model: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Convert an unquantized model, and compress matrices: the LLM's, the tower's where `parts: all`.

    `int8`: rows of the LLM's matrices, of its embedding and its head. `int4`: groups of `group_size` of the blocks'
    matrices; embedding and head are in 8 bits, which is NNCF's default.
    """
    check_kind("openvino", kind)
    need("openvino", _EXPORTING)
    loaded = load_plain(model)
    target.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(model, target)
    facts_of(loaded).write(target)
    return write({VISION: convert_vision(loaded), DECODER: convert_decoder(loaded)}, target, kind, how)


def write(graphs: Mapping[str, Any], target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Compress graphs and write them; return facts for the record."""
    openvino = silent("openvino")

    facts: dict[str, Any] = {"format": "openvino"}
    for name, graph in graphs.items():
        if kind in ("int8", "int4") and (name == DECODER or how.parts == "all"):
            graph = _compress(graph, kind, how.group_size)
            facts |= {"quantizer": "nncf", "quantized": [*facts.get("quantized", []), Path(name).stem]}
        openvino.save_model(graph, target / name, compress_to_fp16=False)
    return facts


def _compress(graph: Any, kind: str, group_size: int) -> Any:
    with quiet():
        nncf = silent("nncf")

        if kind == "int8":
            return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
        mode = nncf.CompressWeightsMode.INT4_SYM
        return nncf.compress_weights(graph, mode=mode, group_size=group_size, ratio=1.0)


def open_session(folder: Path, device: torch.device, threads: int, dtype: torch.dtype) -> Session:
    """Compile both graphs for the CPU, to compute in `dtype` what is not quantized.

    Raises:
        EnvironmentProblem: openvino is not installed, or another device is asked for.
    """
    need("openvino", PACKAGES)
    if device.type != "cpu":
        raise EnvironmentProblem("runtime 'openvino' is built for a CPU here; ask for device cpu")
    return OvSession(folder, threads, dtype)


class OvSession(HostSession):
    """Two compiled graphs; the decoder's request holds the cache of the batch."""

    def __init__(self, folder: Path, threads: int, dtype: torch.dtype) -> None:
        openvino = silent("openvino")

        precision = _PRECISIONS[dtype]
        # By itself OpenVINO computes in bfloat16 where the CPU can, and keeps the cache in 8 bits.
        options = {
            "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision,
        }  # fmt: skip
        self.facts = Facts.read(folder)
        runtime = openvino.Core()
        self._vision, self._decoder = (
            runtime.compile_model(folder / name, "CPU", options).create_infer_request() for name in (VISION, DECODER)
        )
        shapes = {port.get_any_name(): port.get_partial_shape() for port in self._decoder.model_inputs}
        self._no_features = np.zeros((0, shapes["features"][1].get_length()), dtype=np.float32)
        self._num_padding: Ids = np.zeros(0, dtype=np.int64)
        self._order = np.zeros(0, dtype=np.int32)

    def encode_images(self, pixels: Pixels) -> Any:
        self._vision.infer({"pixels": np.ascontiguousarray(pixels)}, share_inputs=True)
        return self._vision.get_tensor("features").data.copy()

    def prefill(self, ids: Ids, features: Any, *, num_padding: Ids | None = None, room: int = 1) -> Any:
        self._decoder.reset_state()
        self._num_padding = np.zeros(len(ids), dtype=np.int64) if num_padding is None else num_padding
        self._order = np.arange(len(ids), dtype=np.int32)
        return self._run(ids, features)

    def decode(self, tokens: Ids) -> Any:
        return self._run(tokens[:, None], self._no_features)

    def _run(self, ids: Ids, features: Any) -> Any:
        given = {
            "ids": np.ascontiguousarray(ids), "num_padding": self._num_padding,
            "features": features, "beam_idx": self._order,
        }  # fmt: skip
        self._decoder.infer(given, share_inputs=True)
        return self._decoder.get_tensor("logits").data.copy()
