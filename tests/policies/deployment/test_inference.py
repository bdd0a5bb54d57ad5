"""The process that computes chunks says what the policy says, and says so when it cannot."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.deployment.inference import Chunk, InferenceError, InferenceProcess, Question
from policies.flow_policy import FlowPolicy, Moment, PolicyConfig
from tests.worldmodel.models import HORIZON, SPECS, make_model
from worldmodel.checkpoint import save_policy
from worldmodel.selfflow import ObjectiveConfig

SPEC = SPECS["one camera"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    save_policy(folder, make_model(), ObjectiveConfig(), {"made": "for a test"})
    return folder


@pytest.fixture(scope="module")
def process(checkpoint):
    made = InferenceProcess(str(checkpoint))
    yield made
    made.close()


def question(number: int = 0, size: tuple[int, int] = (16, 24), **changes) -> Question:
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (1, HORIZON.past, *size, 3), np.uint8)
    state = rng.uniform(-1, 1, (1, HORIZON.past, SPEC.state_dim)).astype(np.float32)
    values: dict[str, Any] = {"video": {"front": frames}, "state": state} | changes
    return Question(
        number,
        12.5,
        Moment(np.zeros(1, np.int64), np.array([3]), np.array([number]), **values),
    )


def answer(process: InferenceProcess, within: float = 60.0) -> Chunk:
    deadline = time.monotonic() + within
    while (chunk := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return chunk


def gone(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_answers_are_those_of_the_policy(process, checkpoint):
    policy = FlowPolicy.from_checkpoint(checkpoint, PolicyConfig(execute=1))
    assert process.spec == policy.spec
    assert process.horizon == policy.horizon
    assert process.stamp == {"made": "for a test"}
    assert process.prefix == min(ObjectiveConfig().prefix, HORIZON.chunk - 1)
    committed = np.full((1, 2, SPEC.action_dim), 0.25, np.float32)
    executed = np.zeros((1, 3, SPEC.action_dim), np.float32)
    later: dict[str, Any] = {"committed": committed, "executed": executed}
    for number, changes in enumerate(({}, later)):
        asked = question(number, **changes)
        assert not process.busy
        process.ask(asked)
        assert process.busy
        with pytest.raises(InferenceError, match="still open"):
            process.ask(asked)
        chunk = answer(process)
        assert not process.busy
        assert (chunk.number, chunk.observed) == (number, 12.5)
        expected, _ = policy.choose(asked.moment)
        np.testing.assert_allclose(chunk.actions, expected[0], atol=1e-5)
        assert {"preprocess", "network", "postprocess"} <= set(chunk.ms)
    np.testing.assert_array_equal(chunk.actions[:2], committed[0])


def test_a_question_that_fails_is_told_and_the_next_one_is_answered(process):
    process.ask(question(task=["fly"]))
    with pytest.raises(InferenceError, match="inference failed: ValueError: unknown task 'fly'"):
        answer(process)
    assert not process.busy
    process.ask(question())
    assert answer(process).actions.shape == (HORIZON.chunk, SPEC.action_dim)


def test_asking_never_waits_for_a_process_that_does_not_read(process):
    os.kill(process.process.pid, signal.SIGSTOP)
    try:
        asked = question(size=(600, 800))  # more than a pipe holds
        start = time.monotonic()
        process.ask(asked)
        for _ in range(20):
            assert process.poll() is None
        assert time.monotonic() - start < 10  # it would wait for ever
        assert process.busy
    finally:
        os.kill(process.process.pid, signal.SIGCONT)
    assert answer(process).number == 0


def test_a_process_that_is_killed_is_told_at_the_next_poll(process):
    """Last of those that share a process."""
    process.ask(question())
    os.kill(process.process.pid, signal.SIGKILL)
    process.process.join(10)
    with pytest.raises(InferenceError, match=r"has died \(exit code -9\)"):
        process.poll()
    assert not process.busy
    with pytest.raises(InferenceError, match="has died"):
        process.poll()
    with pytest.raises(InferenceError, match="has died"):
        process.ask(question())
    process.close()
    assert gone(process.process.pid)
    assert not process._carrier.is_alive()


@pytest.fixture
def closed(monkeypatch) -> list[int | None]:
    """Processes that were closed."""
    pids: list[int | None] = []
    close = InferenceProcess.close

    def closing(self: InferenceProcess) -> None:
        pids.append(self.process.pid)
        close(self)

    monkeypatch.setattr(InferenceProcess, "close", closing)
    return pids


def test_a_checkpoint_that_cannot_be_opened_is_named_and_no_process_is_left(tmp_path, closed):
    with pytest.raises(InferenceError, match="nowhere cannot be opened: .*nowhere"):
        InferenceProcess(str(tmp_path / "nowhere"))
    assert len(closed) == 1
    assert gone(closed[0])


def test_a_checkpoint_that_does_not_open_in_time_is_named_and_no_process_is_left(
    checkpoint, closed
):
    with pytest.raises(InferenceError, match="was not open after 0.01 s"):
        InferenceProcess(str(checkpoint), start_s=0.01)
    assert gone(closed[0])


def test_closing_in_the_middle_of_a_chunk_leaves_nothing(checkpoint):
    process = InferenceProcess(str(checkpoint), delay_s=60.0)
    process.ask(question())
    assert process.poll() is None
    start = time.monotonic()
    process.close()
    process.close()
    assert time.monotonic() - start < 30
    assert gone(process.process.pid)
    assert not process._carrier.is_alive()
    with pytest.raises(InferenceError, match="was closed"):
        process.poll()
