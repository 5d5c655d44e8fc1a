"""What a user of transformers' Trainer may turn without changing what is learned; free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """One way to run the peer."""

    attention: str = "sdpa"
    padding: str = "dynamic"
    """To the longest sample of the micro-batch, or `max`: to the longest that the recipe allows."""
    sampling: str = "sequential"
    """Our order of the data, or Trainer's `group_by_length` (another order, so other losses)."""
    optim: str = "adamw_torch_fused"
    workers: int = 0
    """Of the data loader; 0: batches are made between steps."""
    compile: bool = False
    liger: bool = False
    """Liger's Triton kernels, fused linear cross-entropy among them (GPU only)."""
    checkpointing: bool = False
    static_graph: bool = False
    bucket_mb: int = 0
    """Size of DDP's buckets; 0: its default."""

    @property
    def name(self) -> str:
        """Return what differs from the defaults."""
        plain = asdict(Settings())
        changed = {key: value for key, value in asdict(self).items() if value != plain[key]}
        return " ".join(key if value is True else f"{key}={value}" for key, value in changed.items()) or "plain"

    def flags(self) -> list[str]:
        """Return the command line that hf_trainer.py reads back."""
        return [f"--{key}={int(value) if isinstance(value, bool) else value}" for key, value in asdict(self).items()]
