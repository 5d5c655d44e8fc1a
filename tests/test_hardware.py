"""The datasheet table: what is known is plausible, what is unknown is not guessed."""

from egobench.hardware import GPUS, find_gpu, gpu_of_device
from egobench.models.dims import NAMED
from egobench.spec.workload import MODEL_PATCH_PX


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


def test_unknown_is_none() -> None:
    assert find_gpu("A100") is None
    assert find_gpu(None) is None
    assert gpu_of_device("NVIDIA GeForce GTX 1080") is None
    assert GPUS["T4-16GB"].peak("bf16") is None


def test_patches_agree_with_the_models() -> None:
    assert {name: dims.vision.patch_px for name, dims in NAMED.items()} == MODEL_PATCH_PX
