"""Chunks are computed in a process of their own, so that the command clock never waits for them.

The process opens the checkpoint itself and answers one question at a time. What crosses the pipe
are numpy arrays and plain values, carried by a thread: pictures are larger than what a pipe holds,
and a process that has stopped reading must not stop the command clock. If the process dies, `poll`
says so; nothing restarts it by itself.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from worldmodel.tokens import Horizon
from worldmodel.types import Spec

from ..flow_policy import FlowPolicy, Moment, PolicyConfig


class InferenceError(RuntimeError):
    """Inference failed or its process has died."""


@dataclass(frozen=True)
class Question:
    """What a chunk is wanted for.

    Attributes:
        number: of the chunk since arming; with the seed it is what its noise follows from.
        observed: monotonic time of the newest observation that it is decided on.
        moment: the observations; see `policies.flow_policy.Moment`.
    """

    number: int
    observed: float
    moment: Moment


@dataclass(frozen=True)
class Chunk:
    """An answer.

    Attributes:
        number, observed: of the question.
        actions: ``[K, A]`` in physical units; action k is due ``(k + 1) / fps`` after `observed`.
        ms: per stage, of computing it.
    """

    number: int
    observed: float
    actions: np.ndarray
    ms: dict[str, float]


class Inference(Protocol):
    """Whoever computes chunks while the command clock goes on."""

    spec: Spec
    horizon: Horizon
    prefix: int
    """Committed actions that the model was trained for, at most."""

    @property
    def busy(self) -> bool:
        """Whether a question is still open."""

    def ask(self, question: Question) -> None:
        """Begin with a chunk; never blocks.

        Raises:
            InferenceError: a question is open, or there is nobody to answer.
        """

    def poll(self) -> Chunk | None:
        """The chunk, once it is there; never blocks.

        Raises:
            InferenceError: it failed; the question is closed.
        """

    def close(self) -> None:
        """End it."""


class InferenceProcess:
    """A checkpoint's policy in a process of its own; see `Inference`.

    Args:
        checkpoint: a run's folder or one of its checkpoints.
        config: how chunks are sampled; its `execute` and `prefix` do not count.
        device: "cpu", "cuda", ...
        delay_s: added to each chunk before it is handed over, to rehearse slow inference.
        start_s: how long opening the checkpoint may take.

    Raises:
        InferenceError: the checkpoint cannot be opened; says why.
    """

    def __init__(
        self,
        checkpoint: str,
        config: PolicyConfig | None = None,
        device: str = "cpu",
        delay_s: float = 0.0,
        start_s: float = 120.0,
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a threaded process can hang
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve,
            args=(theirs, checkpoint, config or PolicyConfig(), device, delay_s),
            daemon=True,
            name="selfflow-inference",
        )
        self._question: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._answer: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._open = self._closed = False
        self._carrier = threading.Thread(target=self._carry, daemon=True, name="selfflow-carrier")
        self.process.start()
        theirs.close()
        try:
            facts = self._opened(checkpoint, start_s)
        except BaseException:
            self.close()
            raise
        self.spec: Spec = facts["spec"]
        self.horizon: Horizon = facts["horizon"]
        self.prefix: int = facts["prefix"]
        self.stamp: dict[str, Any] = facts["stamp"]
        self._carrier.start()

    def _opened(self, checkpoint: str, start_s: float) -> dict[str, Any]:
        if not self._pipe.poll(start_s):
            raise InferenceError(f"{checkpoint} was not open after {start_s:g} s")
        try:
            kind, facts = self._pipe.recv()
        except (EOFError, OSError):
            kind, facts = "error", "the process that was to open it has died"
        if kind == "error":
            raise InferenceError(f"{checkpoint} cannot be opened: {facts}")
        return facts

    def _carry(self) -> None:
        """The thread: questions out, answers in, until either end closes."""
        while (question := self._question.get()) is not None:
            try:
                self._pipe.send(question)
                self._answer.put(self._pipe.recv())
            except (EOFError, OSError) as error:
                self._answer.put(("error", f"its process has died ({type(error).__name__})"))
                return

    @property
    def busy(self) -> bool:
        return self._open

    def ask(self, question: Question) -> None:
        if self._open:
            raise InferenceError("a question is still open")
        self._require_alive()
        self._open = True
        self._question.put(question)

    def poll(self) -> Chunk | None:
        self._require_alive()
        try:
            kind, value = self._answer.get_nowait()
        except queue.Empty:
            return None
        self._open = False
        if kind == "error":
            raise InferenceError(f"inference failed: {value}")
        return value

    def _require_alive(self) -> None:
        if self._closed:
            raise InferenceError("inference was closed")
        if not self.process.is_alive():
            self._open = False
            raise InferenceError(
                f"the inference process has died (exit code {self.process.exitcode})"
            )

    def close(self) -> None:
        """End process and thread; a second time does nothing."""
        if self._closed:
            return
        self._closed, self._open = True, False
        self._question.put(None)
        self.process.kill()  # it keeps nothing that could be lost
        self.process.join()
        if self._carrier.ident is not None:
            self._carrier.join(timeout=2.0)
        self._pipe.close()


def _serve(
    pipe: Connection, checkpoint: str, config: PolicyConfig, device: str, delay_s: float
) -> None:
    """The process: open, then answer until the other end closes."""
    # Ctrl-C in a terminal reaches every process of the group; the arm is to be braked first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # How much is executed and committed is for whoever asks to say.
        config = dataclasses.replace(config, execute=1, prefix=0)
        policy = FlowPolicy.from_checkpoint(checkpoint, config, device)
        facts = {
            "spec": policy.spec,
            "horizon": policy.horizon,
            "stamp": policy.stamp,
            "prefix": policy.trained_prefix,
        }
    except Exception as error:  # noqa: BLE001 - whatever it is, the operator is to read it
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        return
    pipe.send(("ready", facts))
    while True:
        try:
            question: Question = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            actions, ms = policy.choose(question.moment)
            if delay_s:
                time.sleep(delay_s)
            answer: tuple[str, Any] = (
                "chunk",
                Chunk(question.number, question.observed, actions[0].astype(np.float64), ms),
            )
        except Exception as error:  # noqa: BLE001 - as above, and the next question may be fine
            traceback.print_exc()
            answer = ("error", f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return


class InlineInference:
    """The same in this process, at once: for tests and for looking at single decisions.

    Args:
        choose: question -> actions ``[K, A]``.
        ready: whether the answer has arrived yet, asked at every poll; default: always.
        prefix: committed actions that `choose` goes on from, at most; default: any number.
    """

    def __init__(
        self,
        spec: Spec,
        horizon: Horizon,
        choose: Callable[[Question], np.ndarray],
        ready: Callable[[Question], bool] = lambda question: True,
        prefix: int | None = None,
    ) -> None:
        self.prefix = horizon.chunk - 1 if prefix is None else prefix
        self.spec, self.horizon, self._choose, self._ready = spec, horizon, choose, ready
        self._asked: Question | None = None

    @property
    def busy(self) -> bool:
        return self._asked is not None

    def ask(self, question: Question) -> None:
        if self.busy:
            raise InferenceError("a question is still open")
        self._asked = question

    def poll(self) -> Chunk | None:
        asked = self._asked
        if asked is None or not self._ready(asked):
            return None
        self._asked = None
        return Chunk(asked.number, asked.observed, self._choose(asked), {})

    def close(self) -> None:
        self._asked = None
