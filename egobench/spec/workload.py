"""A workload: model + data + shapes + training recipe (one YAML in benchmarks/)."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, JsonValue

from egobench.spec.strict import Strict

MODEL_PATCH_PX: Final[dict[str, int]] = {
    "egotiny": 8,
    "internvl-small": 14,
    "internvl3-1b": 14,
    "internvl3-2b": 14,
    "internvl3-8b": 14,
    "internvl3-14b": 14,
    "internvl3-38b": 14,
}
"""Named model -> side of its tower's patch; 2 x 2 patches become one image token of the LLM."""
SHIPPED_WEIGHTS: Final = ("egotiny",)
"""Named models whose weights come with egobench."""
DATA_FORMATS: Final = ("egoworld", "egothink", "egobench", "sharegpt", "messages")
"""What `data.format` may say."""


class ModelSpec(Strict):
    """Which model, and where its weights come from: a `name`, or the `path` of a checkpoint folder."""

    name: str | None = None
    """A named architecture: egotiny (weights shipped), internvl-small, internvl3-1b, -2b, -8b, -38b."""
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

    def identity(self) -> dict[str, Any]:
        """Return what is measured, for the cell's hash: everything but the prose."""
        return self.model_dump(mode="json", exclude={"why", "defaults"})
