"""The policy: the same chunk alone or in a batch, committed actions kept, slots apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.chunk_fit import fit_chunk
from policies.flow_policy import FlowPolicy, PolicyConfig
from policies.smoothness import rms_jerk
from policies.types import Observation
from tests.worldmodel.models import HORIZON, SPECS, make_checkpoint, make_model
from worldmodel.data import resize_frames
from worldmodel.sampler import sample
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import pattern
from worldmodel.types import Spec


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to the rounding of a batched matrix product."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def make(robot: str = "one camera", name: str = "flow", **config) -> FlowPolicy:
    spec = SPECS[robot]
    opened = make_checkpoint(make_model(spec), ObjectiveConfig(name=name))
    return FlowPolicy(opened, PolicyConfig(**({"steps": 2, "execute": 3} | config)))


def past(spec: Spec, batch: int = 3, size: tuple[int, int] = (16, 24), seed: int = 0):
    rng = np.random.default_rng(seed)
    shape = (batch, HORIZON.past, *size, 3)
    video = {c: rng.integers(0, 256, shape, dtype=np.uint8) for c in spec.cameras}
    return video, rng.uniform(-1, 1, (batch, HORIZON.past, spec.state_dim)).astype(np.float32)


def seen(spec: Spec, step: int, rows: list[int]) -> Observation:
    """What slots show at a step; row r of the world shows the same in whichever slot it runs."""

    def draw(row: int):
        rng = np.random.default_rng([row, step])
        frames = {c: rng.integers(0, 256, (16, 24, 3), dtype=np.uint8) for c in spec.cameras}
        return frames, rng.uniform(-1, 1, spec.state_dim).astype(np.float32)

    drawn = [draw(row) for row in rows]
    images = {c: np.stack([frames[c] for frames, _ in drawn]) for c in spec.cameras}
    return Observation(images, np.stack([state for _, state in drawn]))


def play(policy: FlowPolicy, rows: list[int], steps: int) -> np.ndarray:
    """Actions ``[steps, slots, A]``; slot i plays row ``rows[i]``, whose seed is 100 + row."""
    policy.reset([100 + row for row in rows])
    active = np.ones(len(rows), bool)
    return np.stack(
        [policy.act(seen(policy.spec, t, rows), active).action.copy() for t in range(steps)]
    )


# --- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", SPECS)
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_a_batch_is_its_samples_one_by_one(robot: str, steps: int) -> None:
    policy = make(robot, steps=steps)
    video, state = past(policy.spec)
    noise = np.stack([policy.noise(seed, 4) for seed in (7, 8, 9)])
    together = policy.predict_action_chunk(video, state, None, noise)
    assert together.shape == (3, 6, 2)
    assert np.isfinite(together).all()
    for i in range(3):
        row = {c: v[i : i + 1] for c, v in video.items()}
        alone = policy.predict_action_chunk(row, state[i : i + 1], None, noise[i : i + 1])
        assert_close(alone[0], together[i])
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_noise_follows_from_the_seed_and_the_number_of_the_chunk() -> None:
    policy = make()
    assert np.array_equal(policy.noise(3, 1), make().noise(3, 1))
    assert not np.array_equal(policy.noise(3, 1), policy.noise(3, 2))
    assert not np.array_equal(policy.noise(3, 1), policy.noise(1, 3))
    many = np.stack([policy.noise(seed, 0) for seed in range(500)])
    assert abs(many.mean()) < 0.05
    assert many.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("depth", [1, 3])
def test_committed_actions_come_back_and_steer_the_rest(depth: int) -> None:
    policy = make(prefix=depth)
    video, state = past(policy.spec)
    noise = np.stack([policy.noise(seed, 0) for seed in range(3)])
    committed = np.random.default_rng(0).uniform(-1, 1, (3, depth, 2)).astype(np.float32)
    chunk = policy.predict_action_chunk(video, state, None, noise, committed)
    assert np.array_equal(chunk[:, :depth], committed)
    other = policy.predict_action_chunk(video, state, None, noise, -committed)
    assert np.abs(chunk[:, depth:] - other[:, depth:]).max() > 1e-2
    # Every action keeps its own noise, whatever is committed before it.
    noise[:, :depth] += 1
    again = policy.predict_action_chunk(video, state, None, noise, committed)
    assert np.array_equal(again, chunk)


@pytest.mark.parametrize("cache", [True, False])
def test_a_chunk_is_what_the_sampler_gives_cached_or_not(cache: bool) -> None:
    policy = make("two cameras", steps=5)
    video, state = past(policy.spec)
    noise = np.stack([policy.noise(seed, 0) for seed in range(3)])
    found = policy.predict_action_chunk(video, state, ["push the box", "", "reach the ball"], noise)
    values = {f"video/{c}": torch.from_numpy(v).movedim(-1, -3) for c, v in video.items()}
    values["state"] = torch.from_numpy(state)
    given = {n: policy.inputs.normalize(n, v) for n, v in values.items()}
    expected = sample(
        policy.model,
        pattern("act", HORIZON),
        given,
        torch.tensor([1, -1, 0]),
        {"action": torch.from_numpy(noise)[:, :, None]},
        5,
        policy.checkpoint.objective.time,
        cache=cache,
    )
    actions = policy.inputs.denormalize("action", expected.data["action"]).numpy()
    assert_close(found, actions)


def test_images_are_resized_as_in_training() -> None:
    policy = make()
    video, state = past(policy.spec, size=(37, 50))
    small = resize_frames(torch.from_numpy(video["front"]).movedim(-1, -3), (16, 24))
    resized = {"front": small.movedim(-3, -1).numpy()}
    a = policy.predict_action_chunk(video, state)
    assert np.array_equal(a, policy.predict_action_chunk(resized, state))


def test_a_regression_model_gives_one_answer() -> None:
    policy = make(name="regression", steps=5)
    video, state = past(policy.spec)
    draws = np.random.default_rng(1).standard_normal((2, 3, 6, 2), np.float32)
    a, b = (policy.predict_action_chunk(video, state, noise=noise) for noise in draws)
    assert np.array_equal(a, b)
    calls: list[int] = []
    policy.model.register_forward_hook(lambda *_: calls.append(1))
    policy.predict_action_chunk(video, state)
    assert len(calls) == 1


def test_tasks_steer_and_unknown_ones_are_refused() -> None:
    policy = make()
    video, state = past(policy.spec)
    ball, box, none = (
        policy.predict_action_chunk(video, state, [task] * 3)
        for task in ("reach the ball", "push the box", "")
    )
    assert np.abs(ball - box).max() > 1e-3
    assert np.array_equal(none, policy.predict_action_chunk(video, state))
    with pytest.raises(
        ValueError, match="unknown task 'push the bog'. Did you mean 'push the box'"
    ):
        policy.predict_action_chunk(video, state, ["push the bog"] * 3)


@pytest.mark.parametrize(
    "config", [{"execute": 0}, {"execute": 7}, {"execute": 4, "prefix": 3}, {"prefix": -1}]
)
def test_a_chunk_that_is_too_short_is_refused(config: dict) -> None:
    with pytest.raises(ValueError, match="a chunk of 6 actions cannot give"):
        make(**config)
    assert make(execute=4, prefix=2).config.prefix == 2


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one step, found 0"):
        make(steps=0)


# --- slots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 2])
def test_an_episode_is_the_same_in_any_slot(prefix: int) -> None:
    policy = make(prefix=prefix)
    together = play(policy, [0, 1, 2], 10)
    for row in range(3):
        assert_close(play(policy, [row], 10)[:, 0], together[:, row])
    assert np.abs(together[:, 0] - together[:, 1]).max() > 1e-2


def test_new_chunks_come_when_the_old_ones_are_executed() -> None:
    policy = make(execute=3)
    policy.reset([1, 2])
    active = np.ones(2, bool)
    decisions = [policy.act(seen(policy.spec, t, [0, 1]), active) for t in range(7)]
    assert [bool(d.new_chunk.all()) for d in decisions] == [True, False, False] * 2 + [True]
    for decision in decisions:
        assert (decision.latency_ms is not None) == bool(decision.new_chunk.any())
    stages = decisions[0].latency_ms
    assert stages is not None
    assert set(stages) == {"observe", "preprocess", "network", "postprocess"}


def test_a_new_chunk_begins_with_what_was_committed() -> None:
    """The actions that a running chunk still holds are executed before anything new."""
    policy = make(execute=3, prefix=2)
    policy.reset([1])
    active = np.ones(1, bool)
    for t in range(3):
        policy.act(seen(policy.spec, t, [0]), active)
    held = policy._chunk[0, 3:5].copy()
    actions = [policy.act(seen(policy.spec, t, [0]), active).action[0].copy() for t in (3, 4)]
    assert np.array_equal(actions, held)


def test_slots_start_anew_by_themselves() -> None:
    policy = make(prefix=1)
    policy.reset([100, 101])
    active = np.ones(2, bool)
    kept = [policy.act(seen(policy.spec, t, [0, 1]), active).action.copy() for t in range(4)]
    policy.reset_slots([1], [102])
    # From step 4 on, slot 1 plays row 2 from its first step.
    for t in range(4, 10):
        now = seen(policy.spec, t, [0, 1])
        other = seen(policy.spec, t - 4, [2])
        now = replace(now, state=np.concatenate([now.state[:1], other.state]))
        now.images["front"][1] = other.images["front"][0]
        kept.append(policy.act(now, active).action.copy())
    actions = np.stack(kept)
    assert_close(actions[:, 0], play(policy, [0], 10)[:, 0])
    assert_close(actions[4:, 1], play(policy, [2], 6)[:, 0])


def test_inactive_slots_are_left_alone() -> None:
    policy = make()
    policy.reset([100, 101])
    active = np.array([True, False])
    for t in range(4):
        decision = policy.act(seen(policy.spec, t, [0, 1]), active)
        assert not decision.new_chunk[1]
    assert not policy._history[1]


# --- chunks fitted by polynomials ----------------------------------------------------------------


def fitted(rank: tuple[int, ...] = (3, 3), targets: tuple[int, ...] = (), **config) -> FlowPolicy:
    """A policy whose demonstrations needed this many coefficients."""
    policy = make("no camera")
    spec = replace(policy.spec, action_rank=rank, action_targets=targets)
    opened = make_checkpoint(make_model(spec), policy.checkpoint.objective)
    return FlowPolicy(opened, PolicyConfig(**({"steps": 2, "execute": 3} | config)))


def sampled(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Where chunks will be written down as the model gives them, one entry a prediction."""
    chunks: list[np.ndarray] = []
    predict = policy._predict

    def note(*arguments):
        chunk, times = predict(*arguments)
        chunks.append(chunk.copy())
        return chunk, times

    monkeypatch.setattr(policy, "_predict", note)
    return chunks


def test_without_coefficients_actions_are_as_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = play(fitted(rank=()), [0, 1], 9)
    assert np.array_equal(play(fitted(smooth=0), [0, 1], 9), plain)
    assert np.array_equal(play(fitted(rank=(0, 0)), [0, 1], 9), plain)
    assert np.abs(play(fitted(), [0, 1], 9) - plain).max() > 1e-2
    policy = fitted(smooth=0)
    chunks = sampled(policy, monkeypatch)
    assert np.array_equal(
        play(policy, [0, 1], 9), np.concatenate([c[:, :3].swapaxes(0, 1) for c in chunks])
    )


def test_the_demonstrations_say_how_many_coefficients_unless_the_user_does() -> None:
    theirs = play(fitted(rank=(2, 4)), [0], 6)
    assert not np.array_equal(play(fitted(rank=(2, 4), smooth=3), [0], 6), theirs)
    users = play(fitted(rank=(), smooth=3), [0], 6)
    assert np.array_equal(play(fitted(rank=(3, 3)), [0], 6), users)
    assert np.array_equal(play(fitted(rank=(2, 4), smooth=3), [0], 6), users)


def test_a_switch_keeps_its_actions_bit_for_bit_beside_a_fitted_joint() -> None:
    raw, half = play(fitted(smooth=0), [0, 1], 9), play(fitted(rank=(3, 0)), [0, 1], 9)
    assert np.array_equal(half[..., 1], raw[..., 1])
    assert np.abs(half[..., 0] - raw[..., 0]).max() > 1e-2


@pytest.mark.parametrize("execute", [3, 4])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("history", [0, 1, 3])
def test_a_later_chunk_is_fitted_with_what_was_executed_and_committed(
    execute: int, prefix: int, history: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fitted((2, 3), execute=execute, prefix=prefix, history=history, history_weight=7.0)
    chunks = sampled(policy, monkeypatch)
    played = play(policy, [0, 1], 3 * execute).swapaxes(0, 1)
    nothing = np.zeros((2, 0, 2), np.float32)
    running = fit_chunk(chunks[0], nothing, policy.rank, 7.0)
    expected = running[:, :execute]
    for chunk in chunks[1:]:
        committed = running[:, execute : execute + prefix]
        assert np.array_equal(chunk[:, :prefix], committed)
        executed = expected[:, expected.shape[1] - history :]
        known = np.concatenate([executed, committed], axis=1)
        new = fit_chunk(chunk[:, prefix:], known, policy.rank, 7.0)
        running = np.concatenate([committed, new], axis=1)
        expected = np.concatenate([expected, running[:, :execute]], axis=1)
    assert np.array_equal(played, expected)


def test_committed_actions_are_executed_as_they_were_fitted() -> None:
    policy = fitted(prefix=2)
    policy.reset([1])
    active = np.ones(1, bool)
    for t in range(3):
        policy.act(seen(policy.spec, t, [0]), active)
    held = policy._chunk[0, 3:5].copy()
    actions = [policy.act(seen(policy.spec, t, [0]), active).action[0].copy() for t in (3, 4)]
    assert np.array_equal(actions, held)


def test_an_episode_begins_where_the_joints_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """At rest: the only polynomials left are multiples of (t + 1) (t + 2) (t + 3)."""
    policy = fitted((4, 4), targets=(2, -1), history_weight=1e10)
    chunks = sampled(policy, monkeypatch)
    policy.reset([5, 6])
    now = seen(policy.spec, 0, [0, 1])
    policy.act(now, np.ones(2, bool))
    t = np.arange(6.0)
    leaving = (t + 1) * (t + 2) * (t + 3)
    for slot in range(2):
        joint = now.state[slot, 2]
        pull = leaving @ (chunks[0][slot, :, 0] - joint) / (leaving @ leaving)
        expected = joint + pull * leaving
        np.testing.assert_allclose(policy._chunk[slot, :, 0], expected, rtol=1e-4, atol=1e-4)
    # The other dimension commands no joint: it is fitted to what was sampled alone.
    alone = fit_chunk(chunks[0], np.zeros((2, 0, 2), np.float32), policy.rank, 1.0)
    assert np.array_equal(policy._chunk[..., 1], alone[..., 1])
    assert np.abs(policy._chunk[..., 0] - alone[..., 0]).max() > 1e-2


@pytest.mark.parametrize("targets", [(), (-1, -1)])
def test_where_nothing_commands_a_joint_an_episode_begins_as_sampled(
    targets: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fitted((2, 3), targets)
    chunks = sampled(policy, monkeypatch)
    policy.reset([5])
    policy.act(seen(policy.spec, 0, [0]), np.ones(1, bool))
    nothing = np.zeros((1, 0, 2), np.float32)
    assert np.array_equal(policy._chunk, fit_chunk(chunks[0], nothing, policy.rank, 1.0))


def test_only_the_first_chunk_begins_at_the_joints() -> None:
    """Later ones go on from what was commanded, however far behind the joints are."""
    with_targets = play(fitted((3, 3), (0, 1), history_weight=1e10), [0, 1], 9)
    for n in (3, 6):
        around = with_targets[n - 3 : n + 3]
        assert np.abs(np.diff(around, n=3, axis=0)).max() < 1e-3
    first = [seen(fitted().spec, 0, [0, 1]).state[:, :2]] * 3
    np.testing.assert_allclose(with_targets[:3], first, atol=1e-4)


@pytest.mark.parametrize("prefix", [0, 2])
def test_fitted_episodes_are_the_same_in_any_slot_and_company(prefix: int) -> None:
    policy = fitted((3, 0), targets=(1, -1), prefix=prefix)
    together = play(policy, [0, 1, 2], 10)
    for row in range(3):
        assert_close(play(policy, [row], 10)[:, 0], together[:, row])
    # Slot 1 begins anew in the very step in which slot 0 computes a later chunk.
    policy.reset([100, 101])
    active, kept = np.ones(2, bool), []
    for t in range(9):
        if t == 3:
            policy.reset_slots([1], [102])
        now = seen(policy.spec, t, [0, 1])
        if t >= 3:
            now.state[1] = seen(policy.spec, t - 3, [2]).state[0]
        kept.append(policy.act(now, active).action.copy())
    assert_close(np.stack(kept)[:, 0], together[:9, 0])
    assert_close(np.stack(kept)[3:, 1], together[:6, 2])


def test_a_fitted_path_jerks_far_less() -> None:
    rough, smooth = (play(fitted(smooth=n), [0, 1, 2, 3], 30) for n in (0, 3))
    for slot in range(4):
        assert rms_jerk(smooth[:, slot], 20) < 0.3 * rms_jerk(rough[:, slot], 20)


@pytest.mark.parametrize("config", [{"smooth": -1}, {"history": -1}, {"history_weight": 0.0}])
def test_a_fit_that_means_nothing_is_refused(config: dict) -> None:
    ((name, value),) = config.items()
    with pytest.raises(ValueError, match=f"history_weight above 0; found .*{name}={value}"):
        make(**config)


# --- imagination ---------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ["one camera", "two cameras", "no state"])
def test_the_policy_shows_what_it_imagines(robot: str) -> None:
    policy = make(robot)
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (10, 20, 30, 3), dtype=np.uint8) for c in policy.spec.cameras}
    state = np.zeros((10, policy.spec.state_dim), np.float32)
    frames, at = policy.imagine(images, state, rng.uniform(-1, 1, (9, 2)).astype(np.float32))
    assert frames.shape == (5, 20, 30, 3)
    assert frames.dtype == np.uint8
    assert at.tolist() == [0, 2, 4, 6, 8]


def test_without_cameras_nothing_is_imagined() -> None:
    with pytest.raises(ValueError, match="without cameras, so it imagines no frames"):
        make("no camera").imagine({}, np.zeros((3, 3)), np.zeros((2, 2)))
