"""Answering processes, one a model: few at a time, one question at a time, each crash a message."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import IO, Final

from pydantic import BaseModel, ValidationError

from egobench.errors import EgobenchError
from egobench.records.answering import Message, ModelOpened, Offer, Question, Reply
from egobench.records.inference import InferenceRequest

OPEN_LIMIT_S: Final = 300.0
ANSWER_LIMIT_S: Final = 300.0
"""A compiled runtime's first answer takes a minute or two."""
_GOODBYE_S: Final = 2.0
ARGUMENTS: Final = ("-m", "egobench.infer.answering")


class NoAnswer(EgobenchError):
    """Why a model gave none, in words for the page."""


class Answerer:
    """One process with one loaded model."""

    facts: ModelOpened

    def __init__(self, arguments: tuple[str, ...] = ARGUMENTS) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # A session of its own: Ctrl-C is for the server, which then ends its processes.
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def open(self, request: InferenceRequest) -> None:
        """Load the model.

        Raises:
            NoAnswer: it cannot be loaded, or the process died over it.
        """
        opened = self._exchange(request, OPEN_LIMIT_S).opened
        assert opened is not None
        self.facts = opened

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: Question) -> Reply:
        """Return the answer.

        Raises:
            NoAnswer: it refused, died or took too long.
        """
        reply = self._exchange(question, ANSWER_LIMIT_S).reply
        assert reply is not None
        return reply

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def dismiss(self) -> None:
        """End its input, whereupon it goes by itself unless it is busy."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()

    def close(self) -> None:
        """End the process: it is killed if it is busy."""
        self.dismiss()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _exchange(self, sent: BaseModel, limit_s: float) -> Message:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(sent.model_dump_json() + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it died: its last words follow
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            self.close()
            raise NoAnswer(f"nothing came within {limit_s:.0f} s; its process was ended") from None
        try:
            message = Message.model_validate_json(line)
        except ValidationError:
            raise NoAnswer(self._last_words()) from None
        if message.refused is not None:
            raise NoAnswer(message.refused)
        return message

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put("")  # the end

    def _last_words(self) -> str:
        code = self._process.wait()
        if self._log.closed:
            return "the server ended its process"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGKILL:
            how += " (out of memory?)"
        self.close()
        return f"its process {how}: {lines[-1] if lines else 'it said nothing'}"


class Pool:
    """The processes of the models that were asked last."""

    def __init__(self, most: int, arguments: tuple[str, ...] = ARGUMENTS) -> None:
        self._most, self._arguments = most, arguments
        self._held: OrderedDict[str, Answerer] = OrderedDict()
        self._lock = threading.Lock()
        self._is_closed = False

    def ask(self, request: InferenceRequest, question: Question) -> tuple[ModelOpened, Reply]:
        """Ask a model, loading it where needed; others wait meanwhile, so that no latency is another's doing.

        Raises:
            NoAnswer: in words for the page.
        """
        with self._lock:
            answerer = self._opened(request)
            try:
                return answerer.facts, answerer.ask(question)
            finally:
                if not answerer.is_alive:
                    self._held.pop(request.model_dump_json(), None)

    def is_loaded(self, request: InferenceRequest) -> bool:
        """Tell whether a model waits for questions."""
        return request.model_dump_json() in self._held

    @property
    def pids(self) -> list[int]:
        """Return the processes, the one asked longest ago first."""
        return [one.pid for one in self._held.values()]

    def _opened(self, request: InferenceRequest) -> Answerer:
        key = request.model_dump_json()
        if self._is_closed:
            raise NoAnswer("the server is ending")
        if key not in self._held:
            while len(self._held) >= self._most:
                self._held.popitem(last=False)[1].close()
            answerer = self._held[key] = Answerer(self._arguments)
            try:
                answerer.open(request)
            except NoAnswer:
                answerer.close()
                self._held.pop(key, None)
                raise
        self._held.move_to_end(key)
        return self._held[key]

    def close(self) -> None:
        """End all processes, also one that is busy."""
        self._is_closed = True
        held = list(self._held.values())
        for answerer in held:
            answerer.dismiss()
        for answerer in held:
            answerer.close()
        self._held.clear()


def start_offer(folder: Path) -> subprocess.Popen[bytes]:
    """Ask what the machine can run; it takes the seconds that importing torch takes."""
    return subprocess.Popen([sys.executable, "-m", "egobench.infer.offer", str(folder)], stdout=subprocess.PIPE)


def read_offer(process: subprocess.Popen[bytes]) -> Offer | None:
    """Wait for the offer; None where nothing can be run here (its stderr says why)."""
    text, _ = process.communicate()
    try:
        return Offer.model_validate_json(text.splitlines()[-1])  # a library may have printed before
    except (IndexError, ValidationError):
        return None
