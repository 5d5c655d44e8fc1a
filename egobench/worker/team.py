"""How the nodes of an allocation find each other and talk: torch's TCPStore on the first node.

Polled with short calls only: a call that waits would hold up every other thread of the same client.
"""

from __future__ import annotations

import contextlib
import datetime
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable
from typing import Final, TypeVar

from pydantic import BaseModel
from torch.distributed import DistError, TCPStore

from egobench.errors import EnvironmentProblem
from egobench.worker.messages import Order
from egobench.worker.slurm import SlurmStep

PORTS: Final = range(15000, 27000)
"""Below the ephemeral ones, so that no outgoing connection has taken it."""
PORT_TRIES: Final = 8
JOIN_WITHIN_S: Final = 300.0
"""Nodes do not start at once: images are pulled, file systems are slow."""
BEAT_EVERY_S: Final = 0.5
LOST_AFTER_S: Final = 10.0
"""Silence of another node's beating thread, which does nothing else, and never touches a file."""
LOOK_COUNTS_S: Final = 2.0
"""Silence counts for so long at most between two looks: who was suspended himself heard nobody."""
IDLE_S: Final = 0.01
_CALL_LIMIT: Final = datetime.timedelta(seconds=20)
_HELLO_WITHIN_S: Final = 2.0

Message = TypeVar("Message", bound=BaseModel)


class LostNode(EnvironmentProblem):
    """Another node of the allocation no longer answers. What became of it, Slurm knows."""


def ports_of(token: str) -> list[int]:
    """Return the ports that the first node tries, in order: the same on every node."""
    first = zlib.crc32(token.encode()) % (len(PORTS) - PORT_TRIES)
    return list(PORTS[first : first + PORT_TRIES])


class Channel:
    """Typed messages over a store."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store

    def put(self, key: str, message: BaseModel | str) -> None:
        """Leave a message, in place of an older one."""
        self._store.set(key, message if isinstance(message, str) else message.model_dump_json())

    def take(self, key: str) -> str | None:
        """Return a message, or None where there is none."""
        return bytes(self._store.get(key)).decode() if self._store.check([key]) else None

    def read(self, key: str, model: type[Message]) -> Message | None:
        """Return a message of this kind, or None where there is none."""
        text = self.take(key)
        return model.model_validate_json(text) if text is not None else None

    def has(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def forget(self, *keys: str) -> None:
        for key in keys:
            self._store.delete_key(key)

    def count(self, key: str, by: int) -> int:
        """Add to a counter and return what it then is."""
        return int(self._store.add(key, by))


class Leader:
    """The first node's end."""

    def __init__(self, step: SlurmStep) -> None:
        """Open the store.

        Raises:
            EnvironmentProblem: none of the ports is free.
        """
        self._step = step
        store = meeting_place()
        self.channel = Channel(store)
        self._greeter = _greet(step.token, store.port)
        self.offsets: dict[int, float] = {}
        """Node -> how far its clock is ahead of ours, s."""
        self._beats: dict[int, tuple[int, float]] = {}
        """Node -> its last beat, and how long ago that was, s."""
        self._looked_s = time.monotonic()
        self._launches = 0

    @property
    def num_nodes(self) -> int:
        return self._step.num_nodes

    @property
    def others(self) -> range:
        return range(1, self.num_nodes)

    def await_all(self, give_up: Callable[[], bool]) -> None:
        """Return when every node is there.

        Raises:
            LostNode: some never came.
        """
        deadline = time.monotonic() + JOIN_WITHIN_S
        while missing := [node for node in self.others if not self.channel.has(f"join/{node}")]:
            if give_up():
                return
            if time.monotonic() > deadline:
                names = ", ".join(self._step.nodes[node] for node in missing)
                raise LostNode(f"no worker came up within {JOIN_WITHIN_S:.0f} s on {names}")
            time.sleep(IDLE_S)

    def lost(self) -> str | None:
        """Return the name of a node that has fallen silent."""
        now_s = time.monotonic()
        passed_s = min(now_s - self._looked_s, LOOK_COUNTS_S)
        self._looked_s = now_s
        for node in self.others:
            beat = self.channel.count(f"beat/{node}", 0)
            last, silent_s = self._beats.get(node, (-1, 0.0))
            silent_s = silent_s + passed_s if beat == last else 0.0
            self._beats[node] = (beat, silent_s)
            if silent_s > LOST_AFTER_S:
                return self._step.nodes[node]
        return None

    def launch(self, order: Order) -> int:
        """Compare clocks, then have every node start its ranks; return the number of this launch.

        Raises:
            LostNode: a node does not answer.
        """
        self._launches += 1
        self._compare_clocks(self._launches)
        self.channel.put(f"order/{self._launches}", order)
        return self._launches

    def _compare_clocks(self, number: int) -> None:
        asked = time.time()
        self.channel.put(f"ping/{number}", "")
        open_ = set(self.others)
        while open_:
            for node in sorted(open_):
                if (told := self.channel.take(f"pong/{number}/{node}")) is not None:
                    self.offsets[node] = float(told) - (asked + time.time()) / 2
                    open_.discard(node)
            if open_ and (name := self.lost()) is not None:
                raise LostNode(f"{name} no longer answers")
            time.sleep(IDLE_S / 5)

    def dismiss(self) -> None:
        """Send all nodes home."""
        self._greeter.close()
        with contextlib.suppress(DistError):
            self.channel.put("dismissed", "")
            deadline = time.monotonic() + 2.0
            while time.monotonic() < deadline and not all(self.channel.has(f"bye/{node}") for node in self.others):
                time.sleep(IDLE_S)


class Follower:
    """The end of any other node."""

    def __init__(self, step: SlurmStep) -> None:
        """Find the first node.

        Raises:
            LostNode: it cannot be found.
        """
        self._step = step
        self.node = step.node_rank
        self.address, store = _find(step)
        self.channel = Channel(store)
        self._received = 0
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="beat", args=(store.port,), daemon=True)
        self._beating.start()
        self.channel.put(f"join/{self.node}", "")

    def _beat(self, port: int) -> None:
        # A connection of its own, so that no other call of this process can delay it.
        try:
            channel = Channel(_connect(self.address, port))
            while not self._over.wait(BEAT_EVERY_S):
                channel.count(f"beat/{self.node}", 1)
        except DistError:
            return  # the main thread finds out by itself

    def next_order(self) -> tuple[int, Order] | None:
        """Wait for the next order; None: there is no more to do.

        Raises:
            LostNode: the first node is gone.
        """
        self._received += 1
        number, answered = self._received, False
        try:
            while True:
                if not answered and self.channel.has(f"ping/{number}"):
                    self.channel.put(f"pong/{number}/{self.node}", repr(time.time()))
                    answered = True
                if (order := self.channel.read(f"order/{number}", Order)) is not None:
                    return number, order
                if self.channel.has("dismissed"):
                    self._over.set()
                    self._beating.join()  # before the store is gone
                    # Where the first node leaves with a code, srun ends all others: we are to leave well all the same.
                    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                        signal.signal(sign, signal.SIG_IGN)
                    self.channel.put(f"bye/{self.node}", "")
                    return None
                time.sleep(IDLE_S)
        except DistError as error:
            raise LostNode(f"the first node, {self._step.nodes[0]}, is gone") from error


def _greet(token: str, store_port: int) -> socket.socket:
    """Tell everybody who connects to one of the job's ports who we are, and where the store is.

    Raises:
        EnvironmentProblem: none of the ports is free.
    """
    for port in ports_of(token):
        with contextlib.suppress(OSError):
            listener = socket.create_server(("", port), backlog=128)
            words = f"{token} {store_port}\n".encode()
            threading.Thread(target=_say_hello, args=(listener, words), name="greeter", daemon=True).start()
            return listener
    raise EnvironmentProblem(f"none of the ports {ports_of(token)} is free on {socket.gethostname()}")


def _say_hello(listener: socket.socket, words: bytes) -> None:
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:  # closed
            return
        with contextlib.suppress(OSError), caller:
            caller.sendall(words)


def meeting_place() -> TCPStore:
    """Return a fresh store, on a port that the system chooses: for the nodes, or for the ranks of one trial."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_CALL_LIMIT)


def _find(step: SlurmStep) -> tuple[str, TCPStore]:
    deadline = time.monotonic() + JOIN_WITHIN_S
    while time.monotonic() < deadline:
        for address in step.addresses:
            for port in ports_of(step.token):
                if (store_port := _hear(address, port, step.token)) is not None:
                    return address, _connect(address, store_port)
        time.sleep(0.1)
    raise LostNode(f"the first node was not found at {' or '.join(step.addresses)} within {JOIN_WITHIN_S:.0f} s")


def _hear(address: str, port: int, token: str) -> int | None:
    """Return the store's port, if it is our first node that listens there, and not somebody else or nobody."""
    # Never with a TCPStore: its constructor waits for ever on a port that takes connections and says nothing.
    try:
        with socket.create_connection((address, port), timeout=_HELLO_WITHIN_S) as caller:
            caller.settimeout(_HELLO_WITHIN_S)
            said = caller.makefile("rb").readline(256).decode(errors="replace").split()
    except OSError:
        return None
    return int(said[1]) if len(said) == 2 and said[0] == token and said[1].isdigit() else None


def _connect(address: str, port: int) -> TCPStore:
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_CALL_LIMIT)
