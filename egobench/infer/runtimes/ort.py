"""ONNX Runtime on a CPU: two graphs in ONNX, quantized by ONNX Runtime's own tools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from egobench.data.batches import Pixels
from egobench.errors import EnvironmentProblem
from egobench.infer.export_onnx import DECODER, VISION, export, quiet
from egobench.infer.folder import copy_tokenizer, facts_of, load_plain
from egobench.infer.runtimes import check_kind, need
from egobench.infer.session import Facts, Fineness, HostSession, Ids, Session

PACKAGES = ("onnxruntime",)
_EXPORTING: Final = ("onnx", "onnxscript", "onnxruntime")
_INT8_COMPUTE: Final = 4
"""MatMulNBits multiplies in int8, with activations rounded block by block: fastest on a CPU. Source: its
`accuracy_level` attribute, ContribOperators.md."""


def prepare(model: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Export an unquantized model, and quantize the graphs: the LLM's with its head, the tower's where `parts: all`.

    `int8_dynamic`: matrices and their inputs in 8 bits, scales of inputs measured as they come. `int8`, `int4`:
    matrices alone, in blocks of `group_size`.
    """
    check_kind("onnxruntime", kind)
    need("onnxruntime", _EXPORTING)
    loaded = load_plain(model)
    target.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(model, target)
    facts_of(loaded).write(target)
    if kind in ("as_trained", "distilled"):
        return export(loaded, target, half_embedding=False)
    whole = target / ".float32"
    try:
        facts = export(loaded, whole, half_embedding=True)
        return facts | quantize(whole, target, kind, how)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def quantize(whole: Path, target: Path, kind: str, how: Fineness) -> dict[str, Any]:
    """Quantize graphs that `export` wrote to another folder; return facts for the record."""
    parts = (DECODER, VISION) if how.parts == "all" else (DECODER,)
    for name in (DECODER, VISION):
        if name in parts:
            with quiet():
                _quantize(whole / name, target / name, kind, how.group_size)
        else:
            for path in whole.glob(f"{name}*"):
                shutil.copyfile(path, target / path.name)
    return {"quantizer": "onnxruntime", "quantized": [Path(part).stem for part in parts], "head": True}


def _quantize(source: Path, target: Path, kind: str, group_size: int) -> None:
    if kind == "int8_dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            source, target, weight_type=QuantType.QInt8, per_channel=True, use_external_data_format=True,
            op_types_to_quantize=["MatMul", "Gemm"], extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
        return
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    how = DefaultWeightOnlyQuantConfig(
        block_size=group_size, is_symmetric=True, accuracy_level=_INT8_COMPUTE, bits=4 if kind == "int4" else 8
    )
    quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=how)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=True)


def open_session(folder: Path, device: torch.device, threads: int, dtype: torch.dtype) -> Session:
    """Load both graphs on the CPU; whatever is not quantized is computed in float32.

    Raises:
        EnvironmentProblem: onnxruntime is not installed, or another device is asked for.
    """
    need("onnxruntime", PACKAGES)
    if device.type != "cpu":
        raise EnvironmentProblem("runtime 'onnxruntime' is built for a CPU here; ask for device cpu")
    return OrtSession(folder, threads)


class OrtSession(HostSession):
    """Two graphs; caches stay in ONNX Runtime's memory from step to step."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.facts = Facts.read(folder)
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy

        def graph(name: str) -> Any:
            return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])

        self._vision, self._decoder = graph(VISION), graph(DECODER)
        inputs = {one.name: one for one in self._decoder.get_inputs()}
        self._outputs = [one.name for one in self._decoder.get_outputs()]
        self._past = [name for name in inputs if name.startswith("past.")]
        self._cache_shape: list[int] = [inputs[self._past[0]].shape[axis] for axis in (1, 3)]
        hidden: int = inputs["features"].shape[1]
        self._no_features = self._value(np.zeros((0, hidden), dtype=np.float32))
        self._cache: list[Any] = []
        self._num_padding: Any = None

    def encode_images(self, pixels: Pixels) -> Any:
        return self._vision.run(["features"], {"pixels": pixels})[0]

    def prefill(self, ids: Ids, features: Any, *, num_padding: Ids | None = None, room: int = 1) -> Any:
        rows = len(ids)
        heads, head_dim = self._cache_shape
        empty = np.zeros((rows, heads, 0, head_dim), dtype=np.float32)
        self._cache = [self._value(empty) for _ in self._past]
        self._num_padding = self._value(np.zeros(rows, dtype=np.int64) if num_padding is None else num_padding)
        return self._run(ids, self._value(features))

    def decode(self, tokens: Ids) -> Any:
        return self._run(tokens[:, None], self._no_features)

    def _run(self, ids: Ids, features: Any) -> Any:
        given = {"ids": self._value(np.ascontiguousarray(ids)), "num_padding": self._num_padding, "features": features}
        given |= dict(zip(self._past, self._cache, strict=True))
        logits, *self._cache = self._decoder.run_with_ort_values(self._outputs, given)
        return logits.numpy()
