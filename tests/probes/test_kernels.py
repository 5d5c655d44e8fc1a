"""Kinds of kernels by their real names, and how the moments of a step are given to them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egobench.probes.kernels import KINDS, STEP, Kind, Slice, exclusive, kernels_of, kind_of_kernel, kind_of_operator

NATIVE = "void at::native::"

# As traces show them, cut behind what tells them apart. A100 and V100 traces in the tests of
# https://github.com/facebookresearch/HolisticTraceAnalysis at f4d0062c; H100 and later in public profiling notes.
KERNELS: list[tuple[Kind, str]] = [
    ("matmul", "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN"),
    ("matmul", "nvjet_tst_128x128_64x6_2x1_v_bz_splitK_NTT"),
    ("matmul", "nvjet_sm100_tst_64x32_64x16_2x1_2cta_h_bz_splitk_TNT"),
    ("matmul", "ampere_sgemm_128x64_tn"),
    ("matmul", "volta_sgemm_32x32_sliced1x4_nt"),
    ("matmul", "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"),
    ("matmul", "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off"),
    ("matmul", "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x3_tn_align8>(T1::Para"),
    ("matmul", "void cutlass::Kernel<cutlass_80_tensorop_s1688gemm_128x128_16x4_nt_align4>(cutlass_80_tensorop"),
    ("matmul", "void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 2, 2, false, false, cublasGemv"),
    ("matmul", "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, float, float, float, float"),
    ("matmul", "void cublasLt::splitKreduce_kernel<32, 16, int, float, float, float, float, true, false, false>("),
    ("matmul", "sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x128x16_stage4"),
    ("matmul", "void wgrad_alg0_engine<float, 128, 5, 5, 3, 3, 3, false, 512>(int, int, int, float const*, int, "),
    ("matmul", "cudnn_infer_volta_scudnn_128x64_relu_medium_nn_v1"),
    ("matmul", "void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true, (cudnnKernelDataType_t)0>("),
    ("matmul", "triton_tem_fused_addmm_gelu_3"),
    ("matmul", "Cijk_Ailk_Bjlk_SB_Bias_AS_SAV_UserArgs_MT64x16x16_MI16x16x1_SN_LDSB0"),
    ("attention", "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutl"),
    ("attention", "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64, 128"),
    ("attention", "void pytorch_flash::flash_bwd_convert_dq_kernel<Flash_bwd_kernel_traits<64, 128, 128, 8, 4, 4, 4"),
    ("attention", "void pytorch_flash::flash_bwd_dot_do_o_kernel<true, Flash_bwd_kernel_traits<64, 128, 128, 8, 4"),
    ("attention", "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::Collectiv"),
    ("attention", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0"),
    ("attention", "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128_1x1x1_kernel0_0"),
    ("attention", "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloa"),
    ("attention", "fmha_cutlassB_bf16_aligned_128x128_k128_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<cut"),
    ("attention", "triton_tem_fused_flex_attention_0"),
    ("communication", "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"),
    ("communication", "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<(unsigned long)4096>)"),
    ("communication", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<(unsigned long)4096>)"),
    ("communication", "ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)"),
    ("communication", "ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)"),
    ("optimizer", f"{NATIVE}(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::Fused"
     "OptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::FusedAdamMathFunctor<float, 4, (at::native"),
    ("optimizer", "void multi_tensor_apply_kernel<TensorListMetadata<4>, AdamFunctor<float>, float, float, float, f"),
    ("optimizer", "void kOptimizerStatic8bit2StateBlockwise<__nv_bfloat16, 0, 256, 1>(__nv_bfloat16*, __nv_bfloat16*"),
    ("optimizer", "void kOptimizer32bit2State<float, 0>(float*, float*, float*, float*, float*, float, float, float"),
    ("elementwise", f"{NATIVE}vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, at::detail::Arra"),
    ("elementwise", f"{NATIVE}elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<at::native::BinaryFunct"),
    ("elementwise", f"{NATIVE}unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBas"),
    ("elementwise", f"{NATIVE}reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float, f"),
    ("elementwise", "void (anonymous namespace)::softmax_warp_forward<float, float, float, 10, true, false>(float*"),
    ("elementwise", f"{NATIVE}(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int, float, float c"),
    ("elementwise", f"{NATIVE}(anonymous namespace)::RowwiseMomentsCUDAKernel<float, float>(long, float, float const*"),
    ("elementwise", f"{NATIVE}(anonymous namespace)::GammaBetaBackwardCUDAKernel<float, float>(long, long, float co"),
    ("elementwise", f"{NATIVE}(anonymous namespace)::CatArrayBatchedCopy<float, unsigned int, 1, 128, 1>(float*, at"),
    ("elementwise", f"{NATIVE}(anonymous namespace)::indexSelectLargeIndex<float, int, unsigned int, 1, 1, -2, true"),
    ("elementwise", f"{NATIVE}(anonymous namespace)::fused_dropout_kernel_vec<float, float, unsigned int, 1, 4, boo"),
    ("elementwise", "void at::native::multi_tensor_apply_kernel<at::native::(anonymous namespace)::Tensor"
     "ListMetadata<2>, at::native::(anonymous namespace)::Copy<float, float>>("),
    ("elementwise", "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0"),
    # Named after the operators around which it moves data, not one of them itself.
    ("elementwise", "triton_poi_fused__scaled_dot_product_cudnn_attention_add_mul_permute_stack_sub_unbind_view"),
    ("elementwise", "void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>(float*, unsigned char*, float*, __nv_bf"),
    ("elementwise", "Memcpy DtoD (Device -> Device)"),
    ("elementwise", "Memset (Device)"),
    ("other", "Memcpy HtoD (Pinned -> Device)"),
    ("other", "Memcpy DtoH (Device -> Pageable)"),
    ("other", "at::cuda::(anonymous namespace)::spin_kernel(long)"),
    ("other", "void cub::DeviceRadixSortOnesweepKernel<cub::DeviceRadixSortPolicy<long, int, int>::Policy800, false"),
]  # fmt: skip

OPERATORS: list[tuple[Kind, str]] = [
    ("matmul", "aten::addmm"),
    ("matmul", "aten::mm"),
    ("matmul", "aten::bmm"),
    ("matmul", "aten::linear"),
    ("matmul", "aten::mkldnn_convolution"),
    ("matmul", "aten::convolution_backward"),
    ("attention", "aten::_scaled_dot_product_flash_attention_for_cpu_backward"),
    ("attention", "aten::scaled_dot_product_attention"),
    ("communication", "c10d::allreduce_"),
    ("communication", "gloo:all_reduce"),
    ("optimizer", "aten::_fused_adamw_"),
    ("elementwise", "aten::mul_"),
    ("elementwise", "aten::native_layer_norm"),
    ("elementwise", "aten::_log_softmax_backward_data"),
    ("elementwise", "aten::copy_"),
    ("elementwise", "aten::gelu"),
    ("other", "aten::as_strided"),
    ("other", "aten::transpose"),
    ("other", "aten::t"),
    ("other", "aten::empty_strided"),
    ("other", "AddmmBackward0"),
    ("other", "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad"),
]


@pytest.mark.parametrize(("kind", "name"), KERNELS)
def test_kernels_by_name(kind: Kind, name: str) -> None:
    assert kind_of_kernel(name) == kind


@pytest.mark.parametrize(("kind", "name"), OPERATORS)
def test_operators_by_name(kind: Kind, name: str) -> None:
    assert kind_of_operator(name) == kind


def event(cat: str, name: str, start: float, end: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "tid": tid, "args": args}


def note(name: str, start: float, end: float) -> dict[str, Any]:
    return event("user_annotation", name, start, end)


def launched(name: str, at: float, start: float, end: float, number: int, stream: int = 7) -> list[dict[str, Any]]:
    """Return a kernel and the call of the host that launched it."""
    call = event("cuda_runtime", "cudaLaunchKernel", at, at + 1, correlation=number)
    return [call, event("kernel", name, start, end, tid=stream, correlation=number)]


ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>"
NORM = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor<float"


def gpu_trace() -> dict[str, Any]:
    """Make one step in which the host is done at 100 us and the device at 210 us."""
    return {
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 1},
            note(STEP, 0, 100),
            note("egobench:data", 0, 5),
            note("egobench:forward", 5, 40),
            note("egobench:backward", 40, 80),
            note("egobench:optimizer", 80, 100),
            event("cpu_op", "aten::mm", 8, 30),  # operators of the host are not what the device does
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 4, 8, correlation=1),
            *launched("nvjet_tst_192x192_64x4", 10, 20, 50, 2),
            *launched("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 15, 50, 70, 3),
            # By 60 us the host is in its backward pass, but this one was launched before that.
            *launched(ADD, 39, 70, 80, 4),
            *launched(NORM, 45, 80, 85, 5),
            # Half of the reduction is hidden behind a product on another stream.
            *launched("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 60, 90, 130, 6, stream=20),
            *launched("nvjet_tst_128x256_64x4", 50, 85, 110, 7),
            *launched(ADD, 90, 160, 180, 8),
            *launched(NORM, 95, 180, 190, 9),
            *launched("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 98, 190, 210, 10),
        ]
    }


def test_a_step_on_a_gpu() -> None:
    found = kernels_of([gpu_trace()])
    assert found is not None
    us = {name: round(value * 1e6, 6) for name, value in found.model_dump().items() if name.endswith("_s")}
    assert us == {
        "matmul_s": 30 + 25,
        "attention_s": 20,
        "elementwise_s": 10 + 5,
        "communication_s": 20 + 20,
        "optimizer_s": 20 + 10,
        "other_s": 4,
        "idle_s": 4 + 12 + 30,
    }
    assert sum(us.values()) == pytest.approx(210)
    assert dict(found.top)["ncclDevKernel_AllReduce_Sum_bf16_RING_LL"] == pytest.approx(40e-6)


def test_steps_of_several_traces_are_averaged() -> None:
    one, two = gpu_trace(), gpu_trace()
    two["traceEvents"].append(note(STEP, 210, 300))
    found = kernels_of([one, two, {"traceEvents": []}])
    assert found is not None and found.num_steps == 3
    assert found.matmul_s == pytest.approx(2 * 55e-6 / 3)
    assert found.idle_s == pytest.approx((46 + 46 + 90) * 1e-6 / 3)


def test_nothing_was_watched() -> None:
    assert kernels_of([]) is None
    assert kernels_of([{"traceEvents": [event("cpu_op", "aten::mm", 0, 1)]}]) is None


def test_on_a_cpu_the_innermost_operator_counts() -> None:
    events = [
        note(STEP, 0, 100),
        note("egobench:backward", 0, 80),
        note("egobench:optimizer", 80, 100),
        event("cpu_op", "autograd::engine::evaluate_function: AddmmBackward0", 10, 50),
        event("cpu_op", "AddmmBackward0", 12, 48),
        event("cpu_op", "aten::t", 12, 14),
        event("cpu_op", "aten::mm", 14, 40),
        event("cpu_op", "aten::resolve_conj", 15, 16),
        event("cpu_op", "aten::sum", 50, 60),
        event("user_annotation", "gloo:all_reduce", 30, 75, tid=2),
        event("cpu_op", "aten::mul_", 85, 95),
    ]
    found = kernels_of([{"traceEvents": events}])
    assert found is not None
    us = {name: round(value * 1e6, 6) for name, value in found.model_dump().items() if name.endswith("_s")}
    assert us == {
        "matmul_s": 1 + 24,
        "attention_s": 0,
        "elementwise_s": 10,
        "communication_s": 15,  # the rest of it hides behind operators
        "optimizer_s": 10,
        "other_s": 2 + 2 + 1 + 8 + 2,
        "idle_s": 10 + 10 + 5,
    }


TIMES = st.floats(0, 100, allow_nan=False)


@given(st.lists(st.tuples(TIMES, TIMES, st.sampled_from(KINDS)), max_size=30))
def test_every_moment_is_given_away_once(raw: list[tuple[float, float, Kind]]) -> None:
    slices = [Slice("x", min(a, b), max(a, b), kind) for a, b, kind in raw]
    taken, idle = exclusive(slices, 10, 90)
    assert sum(taken.values()) + idle == pytest.approx(80)
    assert idle >= -1e-9 and min(taken.values()) >= 0
    for kind in KINDS:
        assert taken[kind] <= sum(min(s.end_us, 90) - max(s.start_us, 10) for s in slices if s.kind == kind
                                  and min(s.end_us, 90) > max(s.start_us, 10)) + 1e-9  # fmt: skip
