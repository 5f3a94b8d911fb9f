"""The child side of isolated plug-ins: a nursery that imports them once, and the workers that it forks.

What enters: pickled calls from the training process, over socket pairs that it made. What leaves: their answers, as the
`ChildWork` writes them (rewards: `mmreason.reward_kit.isolated`; tools: `mmreason.agent.isolated`). The
nursery runs no plug-in itself, so it always answers: it forks a worker in milliseconds (imports are done), ends one, and
ends all of them when the training process goes away, however that dies. No torch, unless a plug-in's own module imports it.

Pickle is used in one direction, between processes of one user: what a child sends back is never unpickled.

    training process ──control──▶ nursery ──fork──▶ worker ◀──calls, answers── training process
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Protocol, cast

from mmreason.registry import Registry

#: On the control socket: what to do and with which process. `FORK`, with a socket attached, is answered with a process
#: id, `END` with how the process died (as `os.waitstatus_to_exitcode`); `KILL` is not answered, nor waited for.
COMMAND = struct.Struct("!cq")
ANSWER = struct.Struct("!q")
FORK, END, KILL = b"F", b"E", b"K"

_LENGTH = struct.Struct("!Q")
#: Largest call, in bytes: a picture of the 40 million pixels that the image loader lets through, and more.
MAX_CALL_BYTES = 128 * 2**20
#: Largest answer of the nursery about its start, in bytes.
MAX_WORD_BYTES = 2**20
#: Kept of a traceback, from its end: a message may quote megabytes of model text.
MAX_TRACEBACK_CHARS = 4000
#: The module of the work of rewards.
REWARD_WORK = "mmreason.reward_kit.isolated"
#: The nursery looks this often whether the training process is still there; its socket tells at once, but forks of
#: the training process (data loaders) may hold a copy of that.
_LOOK_EVERY_S = 1.0
#: How much nicer workers are than the nursery: it must get its turn to end them.
_NICER = 5
#: Processor seconds that a call may use beyond its deadline before the kernel ends it, if nobody else is left to.
_SPARE_CPU_S = 5.0


@dataclass(frozen=True)
class Sources:
    """What a nursery imports: plug-ins by name, the modules and files that register them.

    Attributes:
        names: registered names of the plug-ins.
        modules: modules to import.
        files: plug-in files to load.
        work: module that is a `ChildWork`.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    files: tuple[str, ...]
    work: str = REWARD_WORK


class ChildWork(Protocol):
    """What a module must have to do its work in child processes."""

    def load(self, sources: Sources) -> None:
        """Import the plug-ins; may raise anything."""
        ...

    def answer(self, content: bytes) -> bytes:
        """Make the call that a message holds; never raises. Calls `limit_cpu` first."""
        ...


@dataclass(frozen=True)
class NurserySettings:
    """What a nursery is told on its command line.

    Attributes:
        control_fd: descriptor of its end of the control socket.
        parent: process id of the training process.
        memory_mb: address space of a worker.
        sources: what to import.
    """

    control_fd: int
    parent: int
    memory_mb: int
    sources: Sources

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NurserySettings:
        plain = json.loads(text)
        sources = plain.pop("sources")
        work = sources.pop("work", REWARD_WORK)
        return cls(**plain, sources=Sources(**{name: tuple(items) for name, items in sources.items()}, work=work))


# ---------------------------------------------------------------------- frames


def import_sources(sources: Sources, load_files: Callable[[tuple[str, ...]], None], registry: Registry[Any]) -> None:
    """Import what registers the plug-ins, and find each of them; raises what that raises.

    Args:
        sources: the plug-ins.
        load_files: imports plug-in files.
        registry: of their kind.
    """
    load_files(sources.files)
    for module in sources.modules:
        importlib.import_module(module)
    for name in sources.names:
        registry.get(name)


def send_frame(connection: socket.socket, content: bytes) -> None:
    """Send one message with its length before it."""
    connection.sendall(_LENGTH.pack(len(content)) + content)


def receive_frame(connection: socket.socket, max_bytes: int) -> bytes | None:
    """Receive one message; `None` at the end of the stream, also in the middle of a message or if it is too long."""
    head = receive_exactly(connection, _LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > max_bytes:
        return None
    content = receive_exactly(connection, length)
    return content if len(content) == length else None


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """Receive `count` bytes; fewer only at the end of the stream."""
    received = bytearray()
    while len(received) < count:
        chunk = connection.recv(min(count - len(received), 2**20))
        if not chunk:
            break
        received += chunk
    return bytes(received)


class FrameReader:
    """Collects one message from a socket as it comes, without waiting."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._received = bytearray()

    def feed(self, connection: socket.socket) -> bytes | None:
        """Read what is there; the message once it is complete.

        Raises:
            EOFError: the other side is gone.
            ValueError: the message is too long.
        """
        chunk = connection.recv(2**18)
        if not chunk:
            raise EOFError
        self._received += chunk
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > self.max_bytes:
            raise ValueError(f"an answer of {length:,} bytes")
        if len(self._received) < _LENGTH.size + length:
            return None
        content = bytes(self._received[_LENGTH.size : _LENGTH.size + length])
        self._received.clear()
        return content


# ---------------------------------------------------------------------- the worker


def _work(connection: socket.socket, memory_mb: int, work: ChildWork) -> NoReturn:
    """Answer calls until the training process hangs up; never returns into the nursery's code."""
    status = 1
    try:
        os.setpgid(0, 0)  # what a plug-in starts is ended with it
        os.nice(_NICER)
        _limit(resource.RLIMIT_AS, memory_mb * 2**20)
        _limit(resource.RLIMIT_CORE, 0)
        while (content := receive_frame(connection, MAX_CALL_BYTES)) is not None:
            send_frame(connection, work.answer(content))
        status = 0
    except OSError:
        pass  # the training process is gone; nobody is left to tell
    finally:
        os._exit(status)


def _limit(what: int, amount: int) -> None:
    """Lower a limit of this process, within what the system allows."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def limit_cpu(deadline_s: float) -> None:
    """End this process some time after the deadline even if nursery and training process were killed together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spare = (deadline_s + _SPARE_CPU_S) * (os.cpu_count() or 1)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + spare) + 1)


# ---------------------------------------------------------------------- the nursery


def main() -> None:
    """Entry of a nursery process: import, say so, then obey the control socket until it closes."""
    # The training process decides: Ctrl-C on a terminal goes to all processes of a group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # standard output may be somebody's data
    settings = NurserySettings.from_json(sys.argv[2])
    control = socket.socket(fileno=settings.control_fd)
    work, problem = _imported(settings.sources)
    try:
        send_frame(control, json.dumps({"problem": problem}).encode())
    except BrokenPipeError:
        os._exit(0)  # it has ended meanwhile, without needing anybody
    if work is not None:
        _obey(control, settings, work)
    # At once: modules of the plug-ins may have started threads that a normal exit would wait for.
    os._exit(0)


def _imported(sources: Sources) -> tuple[ChildWork | None, str]:
    """Import everything: the work and an empty string, or None and the traceback of what fails."""
    try:
        work = cast(ChildWork, importlib.import_module(sources.work))
        work.load(sources)
    except (Exception, SystemExit):  # noqa: BLE001 - importing runs anybody's code; told to the training process
        return None, traceback.format_exc()[-MAX_TRACEBACK_CHARS:]
    return work, ""


def _obey(control: socket.socket, settings: NurserySettings, work: ChildWork) -> None:
    """Fork and end workers as told; end all of them when nobody tells any more."""
    workers: set[int] = set()
    dying: set[int] = set()
    gc.freeze()  # what was imported is shared with the workers; a collection in one would copy it
    try:
        while os.getppid() == settings.parent:
            dying = {process for process in dying if os.waitpid(process, os.WNOHANG)[0] == 0}
            if not select.select([control], [], [], _LOOK_EVERY_S)[0]:
                continue
            command, descriptor = _command(control)
            if command is None:
                break
            what, process = command
            if what == KILL:
                workers.discard(process)
                _kill(process)
                dying.add(process)
            elif what == END:
                workers.discard(process)
                control.sendall(ANSWER.pack(_end(process)))
            elif descriptor is not None:
                process = os.fork()
                if process == 0:
                    control.close()
                    _work(socket.socket(fileno=descriptor), settings.memory_mb, work)
                os.close(descriptor)
                workers.add(process)
                control.sendall(ANSWER.pack(process))
    except OSError:
        pass  # the training process is gone
    finally:
        for process in workers | dying:
            _end(process)


def _command(control: socket.socket) -> tuple[tuple[bytes, int] | None, int | None]:
    """The next command and the descriptor that came with it; `None` at the end of the stream."""
    content, ancillary, _, _ = control.recvmsg(COMMAND.size, socket.CMSG_SPACE(array.array("i").itemsize))
    if len(content) < COMMAND.size:
        return None, None
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: descriptors.itemsize])
    what, process = COMMAND.unpack(content)
    return (what, process), descriptors[0] if descriptors else None


def _kill(process: int) -> None:
    """Kill a worker with all that it started, if it still runs."""
    for kill in (os.killpg, os.kill):  # it may not have made its own group yet
        try:
            kill(process, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _end(process: int) -> int:
    """Kill a worker if it still runs, and wait for it; how it died."""
    _kill(process)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)
