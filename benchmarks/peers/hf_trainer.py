"""A trial's training through transformers' Trainer: what a user would run instead of egobench.

    torchrun --nproc-per-node 2 benchmarks/peers/hf_trainer.py PATH/trial.json --out FOLDER [settings]

Model, weights, data, order of the data, precision, batch, learning rates and number of steps are the trial's; the loop,
the data loader, DDP, the optimizer and the loss are the Trainer's own, with the settings below. What Trainer would do
beside training (progress bar, logging, saving, its filter of nan losses, which waits for the device at every step) is
switched off. Questions are encoded before the run and pictures are normalised with two operations a batch, which
is less work than a processor would do. Each rank leaves FOLDER/ranks/<rank>.jsonl and .json as a trial's ranks do, so
that both sides are read by the same code; nothing is written, counted or waited for while steps run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from benchmarks.peers.settings import Settings
from egobench.models.pixels import from_uint8
from egobench.models.prompt import IGNORED
from egobench.probes.clock import Lap, PhaseClock
from egobench.probes.memory import MemoryProbe, memory_probe
from egobench.records.measures import StepRecord
from egobench.records.rank import RankReport, RankSummary
from egobench.records.store import TrialPaths, read_document, write_document
from egobench.records.trial import Trial
from egobench.spec import axes as tables
from egobench.train.compile import load_compiler
from egobench.train.material import Material, build_model, load_data, num_steps, prepare_data
from egobench.train.methods import count_parameters
from egobench.train.precision import Precision
from egobench.train.resolve import resolve
from egobench.train.sampler import Sampler
from egobench.train.setup import schedule_of
from egobench.worker.rank import num_threads


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """The samples in the order in which the trial's own sampler deals them."""

    def __init__(self, material: Material, order: Sequence[int]) -> None:
        self._material, self._order = material, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        index, data, train = self._order[place], self._material.data, self._material.train
        pixels = data.train.pixels([train.samples[index]], data.image_px)
        return {
            "input_ids": train.encoded[index].input_ids, "labels": train.encoded[index].labels, "pixels": pixels,
        }  # fmt: skip


@dataclass(frozen=True)
class Collator:
    """Pad on the right, mask the padding, normalise the pictures."""

    pad_id: int
    width: int | None
    """None: as wide as the longest sample."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = self.width or max(len(row["input_ids"]) for row in rows)
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[place, :length], labels[place, :length], mask[place, :length] = row["input_ids"], row["labels"], 1
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
            "pixel_values": from_uint8(np.concatenate([row["pixels"] for row in rows])),
        }


@dataclass(frozen=True)
class Seen:
    """A micro-step as Trainer ran it: kept as it was, and counted when all steps are over."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    loss: torch.Tensor
    num_items: torch.Tensor


class Peer(Trainer):
    """Trainer, with the trial's schedule and decay, that keeps what its micro-steps computed."""

    def __init__(self, trial: Trial, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.trial = trial
        self.seen: list[Seen] = []

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Follow the trial's schedule; Trainer's own would begin its warm-up with a step at rate zero."""
        if self.lr_scheduler is None:
            schedule, chosen = schedule_of(self.trial), optimizer or self.optimizer
            assert chosen is not None
            self.lr_scheduler = LambdaLR(chosen, lambda step: schedule.at(step) / schedule.peak)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Decay what the trial decays; Trainer would decay layer scales and position embeddings as well."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim in (2, 4)]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        ids, mask, labels = (inputs[name] for name in ("input_ids", "attention_mask", "labels"))
        self.seen.append(Seen(ids, mask, labels, loss, num_items_in_batch))
        return loss


class Watch(TrainerCallback):
    """Notes the moment at which each update ended; a step is the time from one to the next, with its data."""

    def __init__(self, device: torch.device, memory: MemoryProbe) -> None:
        self.clock, self.memory = PhaseClock(device), memory
        self.laps: list[Lap] = []
        self.began_at = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.memory.reset()
        self.began_at = time.time()
        self.clock.restart()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.laps.append(self.clock.lap())


def train(trial: Trial, settings: Settings, scratch: Path) -> tuple[RankSummary, list[StepRecord]]:
    """Run this process's rank of the trial through Trainer; RANK and the rest are torchrun's."""
    device = _device(trial)
    precision: Precision = resolve(tables.PRECISIONS, trial.cell.axes["precision"], "axes.precision")
    torch.set_float32_matmul_precision(precision.float32_matmul)
    arguments = _arguments(trial, settings, precision, scratch)
    torch.set_num_threads(num_threads(trial.placement, int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    data = load_data(trial)
    load_compiler("whole" if settings.compile else "off")
    memory = memory_probe(device)  # as in a trial of ours: what is there before the model does not count
    axes = trial.cell.axes | {"attention": settings.attention, "vision_attention": tables.SAME}
    chosen = trial.model_copy(update={"cell": trial.cell.model_copy(update={"axes": axes})})
    loaded = build_model(chosen, precision.parameters, device)
    material = prepare_data(trial, data, loaded)
    model: PreTrainedModel = loaded.model.requires_grad_(True).train()
    num_parameters, num_trainable = count_parameters(model)
    watch = Watch(device, memory)
    order = Sampler(len(material.train.encoded), trial.seed).take(num_steps(trial) * trial.global_batch_size)
    peer = Peer(
        trial, model=model, args=arguments, train_dataset=Rows(material, order), callbacks=[watch],
        data_collator=Collator(loaded.pad_token_id, material.max_length if settings.padding == "max" else None),
    )  # fmt: skip
    peer.train()
    peak = memory.peak()
    records = _records(peer, watch, loaded.image_token_id, memory)
    on_gpu = device.type == "cuda"
    return RankSummary(
        num_parameters=num_parameters, num_trainable_parameters=num_trainable, first_step_at=watch.began_at,
        peak_allocated_bytes=peak.allocated_bytes if on_gpu else None, peak_reserved_bytes=peak.reserved_bytes,
        peak_rss_growth_bytes=None if on_gpu else peak.allocated_bytes,
    ), records  # fmt: skip


def _device(trial: Trial) -> torch.device:
    if trial.placement.device != "cuda":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def _arguments(trial: Trial, settings: Settings, precision: Precision, scratch: Path) -> TrainingArguments:
    axes, recipe = trial.cell.axes, trial.cell.workload.recipe
    on_cpu = trial.placement.device == "cpu"
    return TrainingArguments(
        output_dir=str(scratch), max_steps=num_steps(trial), seed=trial.seed,
        per_device_train_batch_size=int(axes["micro_batch_size"]),
        gradient_accumulation_steps=int(axes["num_accumulation_steps"]),
        learning_rate=float(axes["learning_rate"] or recipe.learning_rate), weight_decay=recipe.weight_decay,
        adam_beta1=recipe.betas[0], adam_beta2=recipe.betas[1], max_grad_norm=recipe.max_grad_norm,
        bf16=precision.autocast is torch.bfloat16, fp16=precision.autocast is torch.float16,
        optim=settings.optim, torch_compile=settings.compile, use_liger_kernel=settings.liger,
        gradient_checkpointing=settings.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.checkpointing else None,
        train_sampling_strategy=settings.sampling,
        dataloader_num_workers=settings.workers, dataloader_pin_memory=not on_cpu,
        dataloader_persistent_workers=settings.workers > 0,
        ddp_find_unused_parameters=False, ddp_broadcast_buffers=False, ddp_static_graph=settings.static_graph or None,
        ddp_bucket_cap_mb=settings.bucket_mb or None, use_cpu=on_cpu,
        ddp_backend=("gloo" if on_cpu else "nccl") if trial.num_ranks > 1 else None,
        remove_unused_columns=False, average_tokens_across_devices=True, logging_nan_inf_filter=False,
        logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip


def _records(peer: Peer, watch: Watch, image_token_id: int, memory: MemoryProbe) -> list[StepRecord]:
    """Count and add up what was kept; the device is long done."""
    schedule, peak = schedule_of(peer.trial), memory.peak()
    world, per_step = peer.args.world_size, len(peer.seen) // len(watch.laps)
    records, started_at = [], watch.began_at
    for step, lap in enumerate(watch.laps):
        took_s = lap.step_time_s()
        seen = peer.seen[step * per_step : (step + 1) * per_step]
        supervised = sum(int((one.labels != IGNORED).sum()) for one in seen)
        # Trainer's loss is the sum over this rank's tokens, over all tokens of the update, times the ranks that DDP
        # will average over.
        loss = sum(float(one.loss) * float(one.num_items) for one in seen) / world / max(1, supervised)
        real = sum(int(one.attention_mask.sum()) for one in seen)
        images = sum(int((one.input_ids == image_token_id).sum()) for one in seen)
        records.append(
            StepRecord(
                step=step, step_time_s=took_s, data_s=0.0, forward_s=0.0, backward_s=0.0, communication_s=0.0,
                optimizer_s=0.0, loss=loss, grad_norm=0.0, learning_rate=schedule.at(step),
                num_samples=sum(len(one.input_ids) for one in seen), image_tokens=images, text_tokens=real - images,
                supervised_tokens=supervised,
                padding_tokens=sum(one.input_ids.numel() for one in seen) - real,
                peak_allocated_bytes=peak.allocated_bytes, peak_reserved_bytes=peak.reserved_bytes,
                started_at=started_at,
            )
        )  # fmt: skip
        started_at += took_s
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", type=Path, help="a trial.json")
    parser.add_argument("--out", type=Path, required=True)
    plain = asdict(Settings())
    for name, default in plain.items():
        parser.add_argument(f"--{name}", type=str if isinstance(default, str) else int, default=default)
    options = parser.parse_args()
    given = {name: type(default)(getattr(options, name)) for name, default in plain.items()}
    trial = read_document(options.trial, Trial)
    if trial is None:
        parser.error(f"{options.trial}: no whole trial document")
    summary, records = train(trial, Settings(**given), options.out / "trainer")
    paths, rank = TrialPaths(options.out), int(os.environ.get("RANK", 0))
    paths.ranks.mkdir(parents=True, exist_ok=True)
    paths.rank_steps(rank).write_text("".join(json.dumps(record.model_dump()) + "\n" for record in records))
    write_document(paths.rank_report(rank), RankReport(rank=rank, outcome="ok", at=time.time(), summary=summary))


if __name__ == "__main__":
    main()
