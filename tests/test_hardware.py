"""The datasheet table: what is known is plausible, what is unknown is not guessed."""

from egobench.hardware import GPUS, find_gpu, gpu_of_device
from egobench.spec.axes import PRECISIONS


def test_rows_are_plausible() -> None:
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert gpu.source
        assert 16e9 <= gpu.memory_bytes <= 200e9
        assert 1e11 < gpu.bandwidth_bytes_per_s < 1e13
        assert ("fp8" in gpu.peak_flops) == (gpu.compute_capability >= (8, 9) or gpu.peak("fp8") is not None)
        assert ("bf16" in gpu.peak_flops) == (gpu.compute_capability >= (8, 0))
        assert gpu.peak_flops["fp16"] > gpu.peak_flops["fp32"]


def test_names_of_the_driver() -> None:
    devices = [device for gpu in GPUS.values() for device in gpu.device_names]
    assert len(set(devices)) == len(devices)
    h200 = gpu_of_device("NVIDIA H200")
    assert h200 is not None
    assert h200.name == "H200-141GB SXM"
    assert h200.peak("bf16") == 989e12


def test_every_precision_has_the_peak_of_its_products() -> None:
    h200, t4 = GPUS["H200-141GB SXM"], GPUS["T4-16GB"]
    peaks = {precision: h200.peak_at(precision) for precision in PRECISIONS}
    assert peaks == {
        "fp32": 67e12, "tf32": 494.5e12, "bf16": 989e12, "bf16_pure": 989e12, "fp16": 989e12, "fp8": 1979e12
    }  # fmt: skip
    assert {precision: t4.peak_at(precision) for precision in PRECISIONS if t4.peak_at(precision)} == {
        "fp32": 8.1e12, "fp16": 65e12
    }  # fmt: skip


def test_unknown_is_none() -> None:
    assert find_gpu("A100") is None
    assert find_gpu(None) is None
    assert gpu_of_device("NVIDIA GeForce GTX 1080") is None
    assert GPUS["T4-16GB"].peak("bf16") is None
