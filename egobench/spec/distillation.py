"""`distilled` variants: which student, which losses, and where the teacher's logits come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from egobench.errors import Mistake, nearest
from egobench.spec.strict import Strict
from egobench.spec.workload import MODEL_PATCH_PX

WHERE: Final = "distillation"
Pair = Annotated[tuple[int, int], Field(strict=False)]


class Student(Strict):
    """The model that is trained: a `path`, a `name`, or what differs from its teacher."""

    path: str | None = None
    """A local checkpoint folder, relative to the workload file; of any LLM family, with the teacher's vocabulary."""
    name: str | None = None
    """A named architecture whose dimensions it has; what is said below differs from it."""
    family: Literal["qwen2", "qwen3", "llama"] | None = None
    """Family of its LLM; default: the teacher's."""
    layers: int | None = Field(default=None, ge=1)
    """Blocks of the LLM."""
    hidden: int | None = Field(default=None, ge=1)
    """Width of the LLM's stream."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of the LLM."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Heads of keys and values."""
    ffn: int | None = Field(default=None, ge=1)
    """Neurons of the LLM's feed-forward networks."""
    tied: bool | None = None
    """Whether its head is its embedding; a student that ties what its teacher does not inherits the embedding."""
    tower_layers: int | None = Field(default=None, ge=1)
    """Blocks of the vision tower."""
    tower_hidden: int | None = Field(default=None, ge=1)
    """Width of the tower's stream."""
    tower_heads: int | None = Field(default=None, ge=1)
    """Attention heads of the tower."""
    tower_ffn: int | None = Field(default=None, ge=1)
    """Neurons of the tower's feed-forward networks."""


class Distillation(Strict):
    """How a student learns from a trained teacher.

    Its loss is a sum over supervised tokens, `weight * T^2 * divergence(teacher, student) + cross_entropy * CE`, where
    both are softened by the temperature T (Hinton et al. 2015, whose T^2 keeps gradients as large whatever T is), and
    of what is matched besides.
    """

    student: Student
    num_steps: int | None = Field(default=None, ge=1)
    """Updates of the student; default: as many as its teacher's."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Its peak learning rate; default: its teacher's."""
    num_warmup_steps: int | None = Field(default=None, ge=0)
    """Its linear warm-up; default: its teacher's."""
    init: Literal["teacher", "random"] = "teacher"
    """Where the student starts. `teacher`: a shallower one copies the teacher's layers, evenly spread, the first and
    the last kept; narrower feed-forward networks keep the teacher's largest neurons. A part (tower, projector, LLM)
    whose stream, heads or family differ from the teacher's starts at random. Of no concern to a student with a
    `path`."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """forward_kl: KL(teacher, student); reverse_kl: KL(student, teacher); jsd: Jensen-Shannon."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits of both are divided by it."""
    weight: float = Field(default=1.0, ge=0)
    """Of the divergence."""
    cross_entropy: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy with the reference answers."""
    hidden: float = Field(default=0.0, ge=0)
    """Weight of matching the stream after chosen LLM blocks, over all tokens, through learned projections that are not
    part of the student: squared error over the teacher's square."""
    attention: float = Field(default=0.0, ge=0)
    """Weight of matching the attention maps of chosen LLM blocks (mean over heads, KL); needs attention: eager."""
    matched_layers: tuple[Pair, ...] = Field(default=(), strict=False)
    """[student's block, teacher's block] from 0, for `hidden` and `attention`; default: every block of the student."""
    teacher_logits: Literal["live", "cached"] = "live"
    """live: the teacher runs beside the student. cached: its `top_k` logits are written once, and read by later trials;
    the mass of all other tokens is one more outcome."""
    top_k: int = Field(default=64, ge=1)
    """cached: tokens that are kept at every supervised position."""
    chunk_bytes: int = Field(default=256 * 2**20, ge=1)
    """Logits of student and teacher that live at once, with everything made from them."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Return what of the teacher's recipe is replaced."""
        told = self.model_dump(include={"num_steps", "learning_rate", "num_warmup_steps"})
        return {name: value for name, value in told.items() if value is not None}

    @property
    def is_matched(self) -> bool:
        """Return whether more than logits is matched."""
        return self.hidden > 0 or self.attention > 0

    def identity(self) -> dict[str, Any]:
        """Return what is measured, for the cell's hash: everything but how much lives at once."""
        return self.model_dump(mode="json", exclude={"chunk_bytes"})


def refusals(how: Distillation, axes: Mapping[str, Any], where: str = WHERE) -> list[Mistake]:
    """Return all that is wrong with a distillation at a point of the matrix, as far as is known without its teacher."""
    return [*_of_student(how.student, where), *_of_losses(how, where), *_of_axes(how, axes, where)]


def _of_student(student: Student, where: str) -> list[Mistake]:
    said = student.model_dump(exclude_none=True)
    if not said:
        what, todo = "the student is its teacher once more", "give layers, ffn, ..., a name or a path"
        return [Mistake(f"{where}.student", what, todo=todo)]
    found = []
    if student.path is not None and len(said) > 1:
        others = ", ".join(sorted(said.keys() - {"path"}))
        found.append(Mistake(f"{where}.student.path", f"a folder has its own dimensions; also given: {others}"))
    if student.name is not None and student.name not in MODEL_PATCH_PX:
        allowed = f"allowed: {', '.join(sorted(MODEL_PATCH_PX))}"
        close = nearest(student.name, MODEL_PATCH_PX)
        found.append(Mistake(f"{where}.student.name", f"unknown model '{student.name}'", allowed, close))
    return found


def _of_losses(how: Distillation, where: str) -> list[Mistake]:
    found = []
    if not (how.weight or how.cross_entropy or how.is_matched):
        found.append(Mistake(where, "every loss has weight 0", todo="give weight, cross_entropy, hidden or attention"))
    if how.is_matched and how.teacher_logits == "cached":
        what = "hidden and attention are matched with a teacher that runs, and teacher_logits is cached"
        found.append(Mistake(where, what, "allowed: teacher_logits: live"))
    if how.matched_layers and not how.is_matched:
        found.append(Mistake(f"{where}.matched_layers", "nothing is matched", todo="give hidden or attention"))
    return found


def _of_axes(how: Distillation, axes: Mapping[str, Any], where: str) -> list[Mistake]:
    found = []
    if how.attention:
        needed = {"attention": ("eager",), "padding": ("max", "dynamic", "bucketed"), "compile": ("off",)}
        wrong = [f"{name}: {axes[name]}" for name, allowed in needed.items() if axes[name] not in allowed]
        if wrong:
            what = f"attention maps exist in the eager kernel only, row by row, not with {', '.join(wrong)}"
            todo = "allowed: attention: eager, padding: max, dynamic or bucketed, compile: off"
            found.append(Mistake(f"{where}.attention", what, todo))
    if how.hidden and axes["compile"] == "whole":
        what = "no block can be listened to in a model that is compiled whole"
        found.append(Mistake(f"{where}.hidden", what, "allowed: compile: off or blocks"))
    return found
