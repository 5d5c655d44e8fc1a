"""A workload: model + data + shapes + training recipe (one YAML in benchmarks/)."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, JsonValue

from egobench.spec.dims import NAMED
from egobench.spec.strict import Strict

MODEL_PATCH_PX: Final[dict[str, int]] = {name: dims.vision.patch_px for name, dims in NAMED.items()}
"""Named model -> side of its tower's patch; 2 x 2 patches become one image token of the LLM."""
SHIPPED_WEIGHTS: Final = {"egotiny": 64}
"""Named models whose weights come with egobench -> side of the pictures they were trained on, pixels."""
DATA_FORMATS: Final = ("egoworld", "egothink", "egobench", "sharegpt", "messages")
"""What `data.format` may say."""


class ModelSpec(Strict):
    """Which model, and where its weights come from: a `name`, or the `path` of a checkpoint folder."""

    name: str | None = None
    """A named architecture: egotiny (weights shipped), internvl-small, internvl-edge, internvl3-1b, -2b, -8b, -38b."""
    path: str | None = None
    """A local Hugging Face checkpoint folder, relative to the workload file."""
    weights: Literal["shipped", "random"] = "shipped"
    """`random` builds the architecture without a checkpoint: speed and memory do not depend on weight values."""


class DataSpec(Strict):
    """Which questions and images, and how they are split."""

    format: str
    """egoworld (generated), egothink, egobench, sharegpt or messages."""
    path: str | None = None
    """File or folder of a data set on disk, relative to the workload file."""
    domain: Literal["home", "workshop"] | None = None
    """egoworld only."""
    num_train: int | None = Field(default=None, ge=1)
    """Training questions; for a data set on disk: at most this many."""
    num_validation: int | None = Field(default=None, ge=1)
    """Validation questions; for a data set on disk: at most this many."""
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of images (never of questions) held out, for a data set on disk without a split of its own."""
    split_seed: int = 0
    """Seed of the generator (egoworld), or of the split by image."""


class Recipe(Strict):
    """How the model is trained."""

    num_steps: int = Field(ge=1)
    """Optimizer updates."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Shape after the warm-up, towards zero."""
    num_warmup_steps: int = Field(default=0, ge=0)
    """Linear learning-rate warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled, on matrices only."""
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)
    """AdamW moments."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_length: int = Field(default=512, ge=1)
    """Longest sequence in tokens, image tokens included."""
    seed: int = 0
    """Trial t uses seed + t: order of the data and anything drawn at random."""


class EvaluationSpec(Strict):
    """How answers are generated and judged."""

    num_questions: int | None = Field(default=None, ge=0)
    """Validation questions asked; default: all; 0: none."""
    before: bool = False
    """Also ask before training, so that the lift of fine-tuning is measured."""
    batch_size: int = Field(default=32, ge=1)
    """Questions generated together."""
    max_new_tokens: int = Field(default=16, ge=1)
    """Longest answer in tokens."""


class Lengths(Strict):
    """How long samples are, in tokens with their image's; only predictions read it, and no cell's identity has it."""

    mean: float = Field(gt=0)
    """Of all training samples."""
    p90: float | None = Field(default=None, gt=0)
    """Nine samples of ten are no longer; default: the mean."""
    longest: int = Field(ge=1)
    """The longest training sample; where `max_length` is less, that counts."""
    supervised: float | None = Field(default=None, gt=0)
    """Mean tokens of an answer, the end of turn included."""


class Workload(Strict):
    """One file in benchmarks/, or one inline workload of a matrix."""

    why: str
    """One sentence: why this workload exists."""
    model: ModelSpec
    data: DataSpec
    recipe: Recipe
    evaluation: EvaluationSpec = EvaluationSpec()
    image_px: int = Field(ge=14)
    """Side of the square image in pixels."""
    defaults: dict[str, JsonValue] = {}
    """Axis values used where the matrix does not give one."""
    lengths: Lengths | None = None
    """What `egobench data lengths` measured; default: predictions take every sample to be `max_length` tokens long."""

    def identity(self) -> dict[str, Any]:
        """Return what is measured, for the cell's hash: everything but the prose and hints."""
        return self.model_dump(mode="json", exclude={"why", "defaults", "lengths"})
