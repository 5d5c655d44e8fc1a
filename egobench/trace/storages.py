"""Watches every storage: when it is made, resized and freed. Real and fake tensors alike, on any one device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from egobench.probes.memory import plain_tensors

ROUND_BYTES: Final = 512
"""CUDA's caching allocator hands out multiples of it."""
COLLECTIVES: Final = ("c10d", "_c10d_functional")
"""Namespaces of operators; what they work on was gathered, or is a buffer."""


@dataclass
class Log:
    """What happened to storages, in order."""

    events: list[tuple[int, int]] = field(default_factory=list)
    """(serial number of the storage, change of its bytes)."""
    marks: list[tuple[int, str]] = field(default_factory=list)
    """(number of events so far, what begins)."""
    labels: dict[int, str] = field(default_factory=dict)
    """Serial number -> what the storage turned out to be; may be said long after it was made."""
    streams: dict[int, int] = field(default_factory=dict)
    """Serial number -> the stream that it is made on, where that is not the first."""

    def mark(self, name: str) -> None:
        """Note that something begins."""
        self.marks.append((len(self.events), name))


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Logs the storages of every tensor that an operator returns."""

    def __init__(self, listen: Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None] | None = None) -> None:
        """Args: listen: Also told of every operator, its arguments and what it returned."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = Log()
        self._live: dict[int, list[Any]] = {}
        self._listen = listen
        self._num_seen = 0
        self._first_stream = torch.cpu.current_stream()

    def label(self, tensors: Iterable[torch.Tensor], name: str) -> None:
        """Say what tensors are; storages that were not seen before are from here on."""
        for tensor in tensors:
            for plain in plain_tensors(tensor):
                if plain.device.type != "meta":
                    self.log.labels[self._see(plain)] = name

    def _see(self, tensor: torch.Tensor) -> int:
        """Return the serial number of a tensor's storage."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if (known := self._live.get(key)) is not None:
            return int(known[0])
        self._num_seen += 1
        serial, size = self._num_seen, _rounded(storage.nbytes())
        self.log.events.append((serial, size))
        if (stream := torch.cpu.current_stream()) is not self._first_stream:
            self.log.streams[serial] = id(stream)

        def freed(_: Any) -> None:
            gone = self._live.pop(key)
            self.log.events.append((serial, -gone[1]))

        self._live[key] = [serial, size, weakref.ref(storage, freed)]
        return serial

    def _resized(self, storage: Any, size: int) -> None:
        known = self._live.get(storage._cdata)
        if known is not None:
            self.log.events.append((known[0], _rounded(size) - known[1]))
            known[1] = _rounded(size)
            self.log.labels.setdefault(known[0], "other")  # FSDP's gathered parameters come and go like this

    def _suppose(self, given: Any, name: str) -> None:
        """Say what tensors are unless somebody knows better."""
        for one in tree_iter(given):
            if isinstance(one, torch.Tensor) and one.device.type != "meta":
                self.log.labels.setdefault(self._see(one), name)

    def __enter__(self) -> Storages:
        # FSDP2 frees what it gathered by resizing to nothing: no operator sees it.
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: Any, size: int) -> Any:
            made = self._resize(storage, size)
            self._resized(storage, size)
            return made

        cast("Any", torch.UntypedStorage).resize_ = resize
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        cast("Any", torch.UntypedStorage).resize_ = self._resize
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = _answer(func, args)
        if made is None:
            made = func(*args, **(kwargs or {}))
        if func.namespace in COLLECTIVES:
            self._suppose(args, "other")
        if self._listen is not None:
            self._listen(func, args, kwargs or {}, made)
        for one in (made,) if isinstance(made, torch.Tensor) else tree_iter(made):
            if isinstance(one, torch.Tensor):
                for plain in plain_tensors(one):
                    if plain.device.type != "meta":
                        self._see(plain)
        return made


def _answer(func: Any, args: tuple[Any, ...]) -> Any:
    """Return what `.item()` says of a fake tensor: no, zero, and 1.0, as the number of a step divides; else None."""
    if func is not torch.ops.aten._local_scalar_dense.default or not hasattr(args[0], "fake_mode"):
        return None
    dtype = args[0].dtype
    return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 0


def _rounded(size: int) -> int:
    return -(-size // ROUND_BYTES) * ROUND_BYTES
