"""Questions to llama.cpp: text goes in as tokens, pictures as embeddings, a sequence for every row of the batch.

Rows have no padding here: each begins at position 0 of its own sequence, so a prompt's padding is left out.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from egobench.data.batches import Pixels
from egobench.errors import InvalidInput, Mistake
from egobench.infer.export_onnx import VISION
from egobench.infer.session import Facts, HostSession, Ids, Logits

CPU_INFO: Final = Path("/proc/cpuinfo")
_last_words: deque[str] = deque(maxlen=4)


@dataclass(frozen=True)
class Piece:
    """Positions of one row that go in together."""

    row: int
    start: int
    """First position."""
    what: Any
    """int64 [n] tokens, or float32 [n, hidden] embeddings."""
    is_last: bool

    @property
    def is_text(self) -> bool:
        return int(np.ndim(self.what)) == 1


def pieces_of(row: int, ids: Ids, features: Any, image_token_id: int) -> Iterator[Piece]:
    """Cut a prompt without padding into text and pictures; `features` are those of this row."""
    start = taken = 0
    for is_image, group in itertools.groupby(ids.tolist(), lambda token: token == image_token_id):
        tokens = list(group)
        what: Any = np.asarray(tokens, dtype=np.int64)
        if is_image:
            what, taken = features[taken : taken + len(tokens)], taken + len(tokens)
        yield Piece(row, start, what, start + len(tokens) == len(ids))
        start += len(tokens)


class LlamaSession(HostSession):
    """A GGUF file in llama.cpp, and a tower in ONNX Runtime."""

    def __init__(self, folder: Path, file: Path, threads: int) -> None:
        import llama_cpp
        import onnxruntime

        self.facts = Facts.read(folder)
        self._api: Any = llama_cpp
        self._threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._tower = onnxruntime.InferenceSession(str(folder / VISION), options, providers=["CPUExecutionProvider"])
        llama_cpp.llama_log_set(_listener(llama_cpp), ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        # Weights repacked for AMX crashed while they were decoded (llama-cpp-python 0.3.36, q8_0).
        params.use_extra_bufts = not _has_amx()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise InvalidInput([Mistake(str(file), f"llama.cpp cannot read it: {' '.join(_last_words)}")])
        self._context: Any = None
        self._capacity = (0, 0)
        self._lengths: list[int] = []

    def encode_images(self, pixels: Pixels) -> Any:
        return self._tower.run(["features"], {"pixels": pixels})[0]

    def prefill(self, ids: Ids, features: Any, *, num_padding: Ids | None = None, room: int = 1) -> Any:
        padding = [0] * len(ids) if num_padding is None else num_padding.tolist()
        rows = [row[skipped:] for row, skipped in zip(ids, padding, strict=True)]
        self._make_room(len(rows), max(map(len, rows)) + room)
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._lengths = [len(row) for row in rows]
        taken, cut = 0, list[list[Piece]]()
        for number, row in enumerate(rows):
            count = int((row == self.facts.image_token_id).sum())
            cut.append(list(pieces_of(number, row, features[taken : taken + count], self.facts.image_token_id)))
            taken += count
        made = np.empty((len(rows), self.facts.vocab_size), dtype=np.float32)
        for turn in itertools.zip_longest(*cut):
            for is_text in (True, False):
                same = [piece for piece in turn if piece is not None and piece.is_text == is_text]
                if same:
                    self._feed(same, made)
        return made

    def decode(self, tokens: Ids) -> Any:
        made = np.empty((len(tokens), self.facts.vocab_size), dtype=np.float32)
        pieces = [Piece(row, self._lengths[row], tokens[row : row + 1], True) for row in range(len(tokens))]
        self._feed(pieces, made)
        self._lengths = [length + 1 for length in self._lengths]
        return made

    def _make_room(self, rows: int, width: int) -> None:
        """Make a context of at least so many sequences and positions; the one that fits is kept."""
        if rows == self._capacity[0] and width <= self._capacity[1]:
            return
        api = self._api
        if rows > (most := api.llama_max_parallel_sequences()):
            raise InvalidInput([Mistake("batch_sizes", f"{rows} requests together", f"llama.cpp takes {most} at most")])
        if self._context is not None:
            api.llama_free(self._context)
        params = api.llama_context_default_params()
        params.n_seq_max, params.n_ctx, params.kv_unified = rows, rows * -(-width // 256) * 256, False
        params.n_batch = rows * width
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise MemoryError(f"llama.cpp made no context of {rows} x {width} positions: {' '.join(_last_words)}")
        self._capacity = (rows, width)

    def _feed(self, pieces: Sequence[Piece], made: Logits) -> None:
        """Compute pieces of one kind together, and put the logits of those that end a prompt into `made`."""
        sizes = [len(piece.what) for piece in pieces]
        total = sum(sizes)
        flat = np.concatenate([piece.what for piece in pieces])
        batch = self._api.llama_batch_init(total, 0 if pieces[0].is_text else flat.shape[1], 1)
        try:
            batch.n_tokens = total
            if pieces[0].is_text:
                np.ctypeslib.as_array(batch.token, (total,))[:] = flat
            else:
                np.ctypeslib.as_array(batch.embd, (flat.size,))[:] = flat.reshape(-1)
            places = [np.arange(piece.start, piece.start + size) for piece, size in zip(pieces, sizes, strict=True)]
            np.ctypeslib.as_array(batch.pos, (total,))[:] = np.concatenate(places)
            np.ctypeslib.as_array(batch.n_seq_id, (total,))[:] = 1
            asked = np.ctypeslib.as_array(batch.logits, (total,))
            asked[:] = 0
            for at, row in enumerate(np.repeat([piece.row for piece in pieces], sizes).tolist()):
                batch.seq_id[at][0] = row
            ends = np.cumsum(sizes) - 1
            asked[[end for end, piece in zip(ends, pieces, strict=True) if piece.is_last]] = 1
            if code := self._api.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode returned {code}: {' '.join(_last_words)}")
        finally:
            self._api.llama_batch_free(batch)
        for end, piece in zip(ends.tolist(), pieces, strict=True):
            if piece.is_last:
                logits = self._api.llama_get_logits_ith(self._context, end)
                made[piece.row] = np.ctypeslib.as_array(logits, (self.facts.vocab_size,))


def _has_amx() -> bool:
    try:
        return "amx_int8" in CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return False


def _listener(api: Any) -> Any:
    """Return what keeps llama.cpp's last words, which it would print; made once, since llama.cpp keeps it."""
    if not hasattr(_listener, "made"):

        def hear(level: int, text: bytes, _: Any) -> None:
            _last_words.append(text.decode(errors="replace").strip())

        _listener.made = api.llama_log_callback(hear)  # type: ignore[attr-defined]
    return _listener.made  # type: ignore[attr-defined]
