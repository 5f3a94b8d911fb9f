"""The child side of isolated rewards: a nursery that imports the rewards once, and the workers that it forks.

What enters: pickled calls from the training process, over socket pairs that it made. What leaves: outcomes as JSON. The
nursery runs no reward itself, so it always answers: it forks a worker in milliseconds (imports are done), ends one, and
ends all of them when the training process goes away, however that dies. No torch, unless a reward's own module imports it.

Pickle is used in one direction, between processes of one user: what a child sends back is never unpickled.

    training process ──control──▶ nursery ──fork──▶ worker ◀──calls, outcomes── training process
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from mmreason.reward_kit.outcome import MAX_TRACEBACK_CHARS, Call, Outcome, failed, raised
from mmreason.reward_kit.spec import REWARDS, RewardSpec, load_reward_files

#: On the control socket: what to do and with which process. `FORK`, with a socket attached, is answered with a process
#: id, `END` with how the process died (as `os.waitstatus_to_exitcode`); `KILL` is not answered, nor waited for.
COMMAND = struct.Struct("!cq")
ANSWER = struct.Struct("!q")
FORK, END, KILL = b"F", b"E", b"K"

_LENGTH = struct.Struct("!Q")
#: Largest call and largest answer, in bytes.
MAX_CALL_BYTES = 64 * 2**20
MAX_ANSWER_BYTES = 2**20
#: The nursery looks this often whether the training process is still there; its socket tells at once, but forks of
#: the training process (data loaders) may hold a copy of that.
_LOOK_EVERY_S = 1.0
#: How much nicer workers are than the nursery: it must get its turn to end them.
_NICER = 5
#: Processor seconds that a call may use beyond its deadline before the kernel ends it, if nobody else is left to.
_SPARE_CPU_S = 5.0


@dataclass(frozen=True)
class Sources:
    """What a nursery imports: rewards by name, the modules and files that register them.

    Attributes:
        names: registered names of the rewards.
        modules: modules to import.
        files: reward files to load.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    files: tuple[str, ...]


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
        sources = Sources(**{name: tuple(items) for name, items in plain.pop("sources").items()})
        return cls(**plain, sources=sources)


# ---------------------------------------------------------------------- frames


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


# ---------------------------------------------------------------------- calls and answers


def encode_call(call: Call) -> bytes:
    """A call as it goes to a worker: a line of JSON, then the pickled arguments.

    Raises:
        Exception: whatever an argument raises that cannot be pickled.
    """
    head = {"name": call.spec.name, "members": call.members, "deadline_s": call.deadline_s}
    return json.dumps(head).encode() + b"\n" + pickle.dumps(dict(call.arguments), pickle.HIGHEST_PROTOCOL)


def decode_answer(content: bytes) -> list[Outcome]:
    """The outcomes of a call, one a member."""
    return [Outcome.from_plain(plain) for plain in json.loads(content)]


def _answer(content: bytes) -> bytes:
    """Make the call that a message holds; the outcomes as JSON."""
    head, _, body = content.partition(b"\n")
    facts = json.loads(head)
    spec: RewardSpec = REWARDS.get(facts["name"])
    _limit_cpu(facts["deadline_s"])
    try:
        arguments: dict[str, Any] = pickle.loads(body)  # noqa: S301 - from the training process, over its own socket
    except (Exception, SystemExit):  # noqa: BLE001 - part of the reward boundary: unpickling runs code of its arguments
        outcomes = [raised()] * facts["members"]
    else:
        outcomes = Call(spec, arguments, facts["members"], facts["deadline_s"]).run()
    answer = json.dumps([outcome.to_plain() for outcome in outcomes]).encode()
    if len(answer) > MAX_ANSWER_BYTES:
        problem = f"returned parts of {len(answer):,} bytes, more than the {MAX_ANSWER_BYTES:,} that a child may send"
        answer = json.dumps([o.to_plain() for o in failed(spec, "exception", problem, facts["members"])]).encode()
    return answer


# ---------------------------------------------------------------------- the worker


def _work(connection: socket.socket, memory_mb: int) -> NoReturn:
    """Answer calls until the training process hangs up; never returns into the nursery's code."""
    status = 1
    try:
        os.setpgid(0, 0)  # what a reward starts is ended with it
        os.nice(_NICER)
        _limit(resource.RLIMIT_AS, memory_mb * 2**20)
        _limit(resource.RLIMIT_CORE, 0)
        while (content := receive_frame(connection, MAX_CALL_BYTES)) is not None:
            send_frame(connection, _answer(content))
        status = 0
    except OSError:
        pass  # the training process is gone; nobody is left to tell
    finally:
        os._exit(status)


def _limit(what: int, amount: int) -> None:
    """Lower a limit of this process, within what the system allows."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def _limit_cpu(deadline_s: float) -> None:
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
    problem = _imported(settings.sources)
    send_frame(control, json.dumps({"problem": problem}).encode())
    if not problem:
        _obey(control, settings)
    # At once: modules of the rewards may have started threads that a normal exit would wait for.
    os._exit(0)


def _imported(sources: Sources) -> str:
    """Import everything; the traceback of what fails, or an empty string."""
    try:
        load_reward_files(sources.files)
        for module in sources.modules:
            importlib.import_module(module)
        for name in sources.names:
            REWARDS.get(name)
    except (Exception, SystemExit):  # noqa: BLE001 - importing runs anybody's code; told to the training process
        return traceback.format_exc()[-MAX_TRACEBACK_CHARS:]
    return ""


def _obey(control: socket.socket, settings: NurserySettings) -> None:
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
                    _work(socket.socket(fileno=descriptor), settings.memory_mb)
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
