"""What quantization gains on a CPU where weights dominate: `internvl-edge` (203 M random weights) in several runtimes.

    python benchmarks/edge_speed.py [--work FOLDER] [--rows torch:as_trained onnxruntime:int8_dynamic ...]

Each row is prepared, then measured by `python -m egobench.infer` in a process of its own, one after another; outputs
are compared with torch's in float32, which is the first row. Figures are medians over the repeats. Rows of the same
runtime are compared with that runtime's `as_trained`. Weights are random: accuracy means nothing here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from egobench.infer.runtimes import runtime_of
from egobench.models.internvl import build
from egobench.records.inference import InferenceRequest, InferenceResult
from egobench.records.store import read_document, write_document
from egobench.spec.inference import InferenceSpec
from egobench.units import format_bytes, format_seconds

ROWS = (
    "torch:as_trained", "onnxruntime:as_trained", "onnxruntime:int8_dynamic", "onnxruntime:int8", "onnxruntime:int4",
    "openvino:as_trained", "openvino:int8", "openvino:int4",
)  # fmt: skip


@dataclass(frozen=True)
class Fine:
    """Everything quantized, 4 bits in the groups that NNCF and ONNX Runtime are fastest with."""

    group_size: int = 128
    parts: str = "all"


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/edge_speed"))
    parser.add_argument("--model", default="internvl-edge")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    how = InferenceSpec(
        batch_sizes=tuple(given.batch_sizes), num_prompt_tokens=given.prompt, num_new_tokens=given.new,
        num_repeats=given.repeats, num_warmup=1, threads=given.threads,
    )  # fmt: skip
    model = write_model(given.model, given.work)
    results: dict[str, InferenceResult] = {}
    for row in given.rows:
        results[row] = measured(row, model, given.work, how)
        print_row(row, results)


def write_model(name: str, work: Path) -> Path:
    """Write a model of random weights as a Hugging Face folder, once."""
    folder = work / name
    if not (folder / "config.json").exists():
        spec = {"name": name, "weights": "random"}
        loaded = build(spec, attention="sdpa", dtype=torch.float32, device=torch.device("cpu"), seed=0)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return folder


def measured(row: str, model: Path, work: Path, how: InferenceSpec) -> InferenceResult:
    """Prepare a row in this process, and measure it in another."""
    runtime, kind = row.split(":")
    name = row.replace(":", "-")
    folder = model if runtime.startswith("torch") else work / name
    if not (folder / ("config.json" if folder == model else "session.json")).exists():
        runtime_of(runtime).prepare(model, folder, kind, Fine())
    reference = work / "reference.npz"
    request = InferenceRequest(
        runtime=runtime, kind=kind, folder=str(folder), result=str(work / f"{name}.result.json"), inference=how,
        reference=str(reference) if reference.exists() else None,
        write_reference=None if reference.exists() else str(reference),
    )  # fmt: skip
    path = work / f"{name}.request.json"
    write_document(path, request)
    subprocess.run([sys.executable, "-m", "egobench.infer", str(path)], check=True)
    result = read_document(Path(request.result), InferenceResult)
    assert result is not None
    return result


def print_row(row: str, results: dict[str, InferenceResult]) -> None:
    measures = results[row].measures
    parent = results.get(f"{row.split(':')[0]}:as_trained")
    assert measures is not None
    for number, batch in enumerate(measures.batches):
        gain = ""
        if parent is not None and parent.measures is not None:
            before = parent.measures.batches[number].time_per_output_token_s.p50
            gain = f"{before / batch.time_per_output_token_s.p50:.2f}x"
        outputs = batch.outputs
        checked = (
            "reference"
            if outputs is None
            else f"{outputs.num_equal_tokens}/{outputs.num_tokens} tokens, errors {outputs.prefill_error:.2g} "
            f"{outputs.decode_error:.2g}{'' if outputs.agrees else ' WRONG'}"
        )
        print(
            f"{row:26s} batch {batch.batch_size:2d}  disk {format_bytes(measures.size_on_disk_bytes):>9s}  "
            f"peak {format_bytes(batch.memory.peak_rss_growth_bytes or 0):>9s}  "
            f"images {format_seconds(batch.image_encoding_s.p50):>8s}  "
            f"prefill {format_seconds(batch.prefill_s.p50):>8s}  "
            f"token {format_seconds(batch.time_per_output_token_s.p50):>8s} {gain:6s} "
            f"request {format_seconds(batch.request_s.p50):>8s}  load {measures.load_average_1min:.1f}  {checked}",
            flush=True,
        )


if __name__ == "__main__":
    main()
