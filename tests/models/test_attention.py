"""Every attention kernel is the one that runs, is the same mathematics, and never looks from one sample at another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import masking_utils

from egobench.data import batches as arranging
from egobench.data.batches import BUCKETED, DYNAMIC, MAX, PACKED, Batch, Normaliser, Padding
from egobench.data.egoworld.generate import Recipe, generate
from egobench.errors import EnvironmentProblem
from egobench.models import attention
from egobench.models.answer import generate_answers
from egobench.models.internvl import LoadedModel, build
from egobench.models.prompt import EncodedSet, encode_all
from egobench.spec.axes import ATTENTIONS
from egobench.train.losses import PLAIN
from egobench.train.resolve import resolve

CPU = torch.device("cpu")
ON_CPU = ("eager", "sdpa", "sdpa_flash")
FLASH_OP, MATH_OP = "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math"
PADDINGS = {"dynamic": DYNAMIC, "max": MAX, "bucketed": BUCKETED, "packed": PACKED}
DATA = generate(Recipe("home", "validation", 16, 0, 64))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make(text: str, vision: str | None = None) -> LoadedModel:
    names = {part: getattr(attention, kernel)() for part, kernel in (("text", text), ("vision", vision or text))}
    kernels = {"": names["text"], "text_config": names["text"], "vision_config": names["vision"]}
    loaded = build({"name": "egotiny"}, attention=kernels, dtype=torch.float32, device=CPU, seed=0)
    loaded.model.train()
    return loaded


def samples(loaded: LoadedModel) -> EncodedSet:
    return encode_all(DATA.samples, loaded.tokenizer, loaded.num_image_tokens, 96)


def batches(loaded: LoadedModel, padding: Padding, micro_batch_size: int = 4) -> list[Batch]:
    encoded = samples(loaded).encoded
    lengths = [len(item.input_ids) for item in encoded]
    made = []
    for chunk in padding.arrange(range(len(encoded)), lengths, micro_batch_size):
        images = DATA.images[[DATA.samples[index].meta["image_index"] for index in chunk]]
        items = [encoded[index] for index in chunk]
        made.append(padding.collate(items, images, pad_id=loaded.pad_token_id, max_length=96))
    return made


def loss_of(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    return PLAIN.compute(loaded.model, batch, Normaliser(CPU)(batch.pixels))


def trained(loaded: LoadedModel, padding: Padding) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of one update."""
    loaded.model.zero_grad()
    total = 0.0
    for batch in batches(loaded, padding):
        loss = loss_of(loaded, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, {name: one.grad.clone() for name, one in loaded.model.named_parameters()}


def ops_of(loaded: LoadedModel, batch: Batch) -> Counter[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        loss_of(loaded, batch)
    return Counter({event.key: event.count for event in seen.key_averages()})


@pytest.fixture(scope="module")
def reference() -> tuple[float, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    return trained(make("eager"), DYNAMIC)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", ON_CPU)
def test_same_loss_and_gradients(kernel: str, padding: str, reference: tuple[float, dict[str, torch.Tensor]]) -> None:
    loss, gradients = trained(make(kernel), PADDINGS[padding])
    assert loss == pytest.approx(reference[0], rel=3e-6)
    for name, expected in reference[1].items():
        # Softmax cancels a key bias exactly: its gradient is rounding noise.
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(gradients[name], expected, rtol=0, atol=4e-5 * expected.abs().max().item()), name


@pytest.mark.parametrize("kernel", ["sdpa", "sdpa_flash"])
def test_one_by_one_as_well(
    kernel: str, reference: tuple[float, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where samples are too unlike in length to stand side by side."""
    monkeypatch.setattr(arranging, "MOST_GRID", 0.0)
    assert all(batch.grid is None for batch in batches(make(kernel), PACKED))
    test_same_loss_and_gradients(kernel, "packed", reference)


def moved_by_its_neighbour(loaded: LoadedModel, **dropped: None) -> float:
    """Change the first sample of a packed row; return how far that moves the logits of the others.

    With a cache, which transformers makes unless it is told not to, and which blinds it to packed rows.
    """
    batch = batches(loaded, PACKED)[0]
    inputs = batch.inputs()
    inputs = {name: value for name, value in inputs.items() if name not in dropped}
    changed = inputs | {"input_ids": inputs["input_ids"].clone()}
    first = batch.lengths[0]
    changed["input_ids"][0, first - 5 : first] = 300
    pixel_values = Normaliser(CPU)(batch.pixels)
    with torch.no_grad():
        one, other = (loaded.model(**each, pixel_values=pixel_values).logits[0] for each in (inputs, changed))
    assert (one[:first] - other[:first]).abs().max() > 1  # the change is one
    return float((one[first:] - other[first:]).abs().max())


@pytest.mark.parametrize("dropped", [{}, {"grid": None}], ids=["side_by_side", "one_by_one"])
@pytest.mark.parametrize("kernel", ON_CPU)
def test_no_sample_sees_another(kernel: str, dropped: dict[str, None]) -> None:
    assert moved_by_its_neighbour(make(kernel), **dropped) == 0


@pytest.mark.parametrize("kernel", ["sdpa", "sdpa_flash"])
def test_the_check_above_sees_a_leak(kernel: str) -> None:
    assert moved_by_its_neighbour(make(kernel), segment_lengths=None, grid=None) > 1e-2


@pytest.mark.parametrize("kernel", ON_CPU)
def test_a_packed_sample_has_the_logits_that_it_has_alone(kernel: str) -> None:
    loaded = make(kernel)
    packed, alone = batches(loaded, PACKED, 4)[0], batches(loaded, PACKED, 1)
    with torch.no_grad():
        logits = loaded.model(**packed.inputs(), pixel_values=Normaliser(CPU)(packed.pixels)).logits[0]
        for part in logits.split(list(packed.lengths)):
            own = [
                loaded.model(input_ids=one.input_ids, pixel_values=Normaliser(CPU)(one.pixels)).logits[0]
                for one in alone
                if one.lengths == (len(part),)
            ]
            assert min(float((part - each).abs().max()) for each in own) < 1e-4


def test_lengths_that_do_not_fill_the_row_are_refused() -> None:
    loaded = make("sdpa")
    inputs = batches(loaded, PACKED)[0].inputs() | {"segment_lengths": (10, 20), "grid": None}
    with pytest.raises(RuntimeError, match="split"):
        loaded.model(**inputs)


def test_flash_runs_where_pytorch_would_have_chosen_another() -> None:
    batch = batches(make("eager"), DYNAMIC)[0]
    with sdpa_kernel(SDPBackend.MATH):
        free, forced = ops_of(make("sdpa"), batch), ops_of(make("sdpa_flash"), batch)
    assert (free[FLASH_OP], free[MATH_OP]) == (0, 6)
    assert (forced[FLASH_OP], forced[MATH_OP]) == (6, 0)  # three blocks of the tower, three of the LLM


@pytest.mark.parametrize(("text", "vision", "calls"), [("eager", "sdpa_flash", 3), ("sdpa_flash", "eager", 3)])
def test_tower_and_llm_have_kernels_of_their_own(text: str, vision: str, calls: int) -> None:
    loaded = make(text, vision)
    batch = batches(loaded, PACKED)[0]
    assert ops_of(loaded, batch)[FLASH_OP] == calls  # in the LLM too one a block, for all samples
    assert loss_of(loaded, batch).item() == pytest.approx(loss_of(make("eager"), batch).item(), rel=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa_cudnn", "sdpa_efficient"])
def test_a_backend_that_cannot_run_raises(kernel: str) -> None:
    loaded = make("sdpa", kernel)
    with pytest.raises(RuntimeError, match=r"No (available|viable)"):
        loss_of(loaded, batches(loaded, DYNAMIC)[0])


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch says why each backend cannot
def test_flash_does_not_fall_back_for_what_it_cannot_do() -> None:
    loaded = make("sdpa_flash", "sdpa")
    for block in loaded.model.model.language_model.layers:
        block.self_attn.attention_dropout = 0.5
    with pytest.raises(RuntimeError, match=r"No (available|viable)"):
        loss_of(loaded, batches(loaded, DYNAMIC)[0])


def test_training_with_a_mask_is_not_forced_silently() -> None:
    loaded = make("sdpa_flash")
    batch = batches(loaded, DYNAMIC)[0]
    mask = (batch.input_ids != loaded.pad_token_id).long()
    assert (mask == 0).any()
    with pytest.raises(RuntimeError, match="mask"):
        loaded.model(input_ids=batch.input_ids, attention_mask=mask)


@pytest.fixture(scope="module")
def answers() -> list[str]:
    torch.set_num_threads(1)
    return answered(build({"name": "egotiny"}, attention="sdpa", dtype=torch.float32, device=CPU, seed=0))


def answered(loaded: LoadedModel) -> list[str]:
    encoded = samples(loaded).encoded
    assert len({item.prompt_length for item in encoded}) > 1
    images = DATA.images[[sample.meta["image_index"] for sample in DATA.samples]]
    return generate_answers(loaded, encoded, images)


@pytest.mark.parametrize("kernel", ON_CPU)
def test_questions_are_answered_with_left_padding_and_a_cache(kernel: str, answers: list[str]) -> None:
    assert answered(make(kernel)) == answers


@pytest.mark.parametrize("kernel", ATTENTIONS)
def test_every_value_names_a_kernel_or_says_what_is_missing(kernel: str) -> None:
    try:
        name = resolve(ATTENTIONS, kernel, "axes.attention")()
    except EnvironmentProblem as problem:
        assert kernel.startswith("flash_attention") and f"'{kernel}' needs" in str(problem)
        return
    assert name in masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    # transformers takes every name with this word for a kernel of the flash-attn package.
    assert kernel.startswith("flash_attention") or "flash" not in name


def test_a_saved_model_does_not_name_our_kernels(tmp_path: Path) -> None:
    make("sdpa_flash").model.save_pretrained(tmp_path)
    assert attention.PREFIX not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Run flex attention by its own definition: what inductor makes of it on a CPU, some compilers refuse."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("uncompiled")
def test_the_mask_of_flex_keeps_packed_samples_apart() -> None:
    flex, eager = make("flex", "sdpa"), make("eager")
    batch = batches(eager, PACKED)[0]
    with torch.no_grad():
        assert loss_of(flex, batch).item() == pytest.approx(loss_of(eager, batch).item(), rel=1e-5)
    assert moved_by_its_neighbour(flex) == 0
    assert moved_by_its_neighbour(flex, cu_seq_lens_q=None) > 1e-2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("uncompiled")
def test_flex_answers_as_the_others_do(answers: list[str]) -> None:
    assert answered(make("flex", "sdpa")) == answers


def test_the_variable_length_kernel_is_called_as_this_torch_wants_it() -> None:
    """On the meta device, where its own shape functions run instead of the CUDA kernel."""
    query, key, value = (
        torch.randn(1, heads, 50, 32, device="meta", dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)
    )
    bounds = torch.tensor([0, 20, 50], dtype=torch.int32, device="meta")
    output = attention.in_one_kernel(query, key, value, cu_seq_lens_q=bounds, max_length_q=128, scaling=0.1)
    output.sum().backward()  # type: ignore[no-untyped-call]
    assert output.shape == (1, 50, 4, 32) and key.grad is not None and key.grad.shape == key.shape
    with pytest.raises(ValueError, match="dropout"):
        attention.in_one_kernel(query, key, value, cu_seq_lens_q=bounds, max_length_q=128, dropout=0.1)
