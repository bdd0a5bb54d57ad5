"""Imagined environments: Gymnasium's rules, reproducible, batched and single alike."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from tests.worldmodel.models import SPECS, make_checkpoint, make_model
from worldmodel.checkpoint import Checkpoint
from worldmodel.data import resize_frames
from worldmodel.imagined_env import Dream, ImaginedEnv, ImaginedVectorEnv, spaces_of
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import Horizon
from worldmodel.types import Spec, SpecMismatchError

TWO = Horizon(past=2, past_stride=2, future=2, future_stride=2, chunk=6)  # windows of 6 steps
ONE = Horizon(past=1, past_stride=1, future=2, future_stride=2, chunk=6)  # windows of 4 steps
SIZE = (20, 30)  # of the real world's frames


def world_model(
    robot: str = "one camera", horizon: Horizon = TWO, success: bool = True, **objective: Any
) -> Checkpoint:
    spec = replace(SPECS[robot], has_success=success)
    learnt = ObjectiveConfig(**{"any_frame": 0.5, **objective})
    return make_checkpoint(make_model(spec, horizon), learnt)


def first_frame(spec: Spec, seed: int) -> dict[str, Any]:
    """What a real world might show after ``reset(seed=seed)``."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {"agent_pos": rng.uniform(-1, 1, spec.state_dim).astype(np.float32)}
    if spec.cameras:
        found["pixels"] = {c: rng.integers(0, 256, (*SIZE, 3), np.uint8) for c in spec.cameras}
    return found


def make(checkpoint: Checkpoint, kind: Any = ImaginedEnv, *arguments: Any, **options: Any) -> Any:
    def starts(seed: int) -> dict[str, Any]:
        return first_frame(checkpoint.spec, seed)

    return kind(checkpoint, starts, *arguments, **{"max_steps": 50, "threshold": 1.0, **options})


def plan(steps: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    """Actions ``[steps, rows, A]``."""
    return np.random.default_rng(seed).uniform(-1, 1, (steps, rows, 2)).astype(np.float32)


def flat(observation: dict[str, Any]) -> list[np.ndarray]:
    return [observation["agent_pos"], *observation.get("pixels", {}).values()]


def play(env: ImaginedEnv, seed: int, actions: np.ndarray) -> list[tuple[Any, ...]]:
    """Observations, success probabilities and ends of one episode."""
    observation, info = env.reset(seed=seed)
    rows: list[tuple[Any, ...]] = [(observation, info["success"], False, False)]
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
        rows.append((observation, info["success"], terminated, truncated))
    return rows


def assert_alike(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Equal up to the rounding of batched products: a level of a pixel, a digit of a state."""
    for x, y in zip(flat(a), flat(b), strict=True):
        np.testing.assert_allclose(x.astype(float), y.astype(float), atol=1 if x.ndim > 2 else 1e-4)


@pytest.mark.parametrize("horizon", [TWO, ONE], ids=["two past frames", "one"])
@pytest.mark.parametrize("robot", SPECS)
def test_gymnasium_has_one_recommendation_at_most(robot: str, horizon: Horizon) -> None:
    env = make(world_model(robot, horizon))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
    texts = {str(warning.message) for warning in caught}
    assert all("normalized" in text for text in texts), texts


def test_an_episode_follows_from_its_seed_and_its_actions() -> None:
    env, actions = make(world_model()), plan(9)[:, 0]
    once, again = play(env, 3, actions), play(env, 3, actions)
    for a, b in zip(once, again, strict=True):
        assert a[1] == b[1]
        for x, y in zip(flat(a[0]), flat(b[0]), strict=True):
            np.testing.assert_array_equal(x, y)
    other = actions.copy()
    other[7] *= -1
    changed = play(env, 3, other)
    same = [
        np.array_equal(a[0]["agent_pos"], b[0]["agent_pos"])
        for a, b in zip(once, changed, strict=True)
    ]
    assert same == [True] * 8 + [False] * 2
    assert once[1][1] != play(env, 4, actions)[1][1]


@pytest.mark.parametrize("robot", SPECS)
def test_a_row_of_a_batch_is_the_single_environment_of_its_seed(robot: str) -> None:
    checkpoint, seeds, actions = world_model(robot), [5, 1, 8], plan(8, rows=3)
    together = make(checkpoint, ImaginedVectorEnv, 3)
    observations, infos = together.reset(seed=seeds)
    rows = [(observations, infos["success"])]
    for action in actions:
        observations, _, _, _, infos = together.step(action)
        assert observations in together.observation_space
        rows.append((observations, infos["success"]))
    for i, seed in enumerate(seeds):
        alone = play(make(checkpoint), seed, actions[:, i])
        for (observation, success, *_), (batch, successes) in zip(alone, rows, strict=True):
            row = {"agent_pos": batch["agent_pos"][i]}
            if "pixels" in batch:
                row["pixels"] = {c: v[i] for c, v in batch["pixels"].items()}
            assert_alike(observation, row)
            assert successes[i] == pytest.approx(success, abs=1e-4)


def test_an_episode_that_is_over_rests_and_the_others_go_on_as_if_alone() -> None:
    checkpoint, seeds, actions = world_model(), list(range(6)), plan(8, rows=6)
    alone = [play(make(checkpoint), seed, actions[:, i]) for i, seed in enumerate(seeds)]
    peaks = np.sort([max(row[1] for row in episode) for episode in alone])
    threshold = float(peaks[2:4].mean())  # three of the six reach it
    together = make(checkpoint, ImaginedVectorEnv, 6, threshold=threshold)
    together.reset(seed=seeds)
    ended = np.zeros(6, bool)
    resting: dict[int, np.ndarray] = {}
    total = np.zeros(6)
    for step, action in enumerate(actions, start=1):
        sent = action.copy()
        sent[ended] = np.nan  # nobody looks at it
        observations, rewards, terminated, truncated, infos = together.step(sent)
        assert not truncated.any()
        assert (terminated >= ended).all()
        assert (infos["is_success"] == terminated).all()
        total += rewards
        for i in range(6):
            frame = observations["pixels"]["front"][i]
            if ended[i]:
                np.testing.assert_array_equal(frame, resting[i])
            else:
                expected = alone[i][step][0]["pixels"]["front"]
                np.testing.assert_allclose(frame.astype(int), expected.astype(int), atol=1)
                assert terminated[i] == (alone[i][step][1] >= threshold)
            resting[i] = frame
        ended = terminated
    assert ended.sum() == 3
    np.testing.assert_array_equal(total, ended)


def test_all_at_rest_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(world_model(), ImaginedVectorEnv, 2, max_steps=1)
    env.reset(seed=0)
    *_, truncated, _ = env.step(plan(1, rows=2)[0])
    assert truncated.all()
    monkeypatch.setattr(Dream, "step", lambda *_: pytest.fail("it imagined"))
    *_, truncated, _ = env.step(plan(1, rows=2)[0])
    assert truncated.all()


def test_success_is_a_probability_that_reaches_the_threshold() -> None:
    checkpoint, actions = world_model(), plan(3)[:, 0]
    reached = play(make(checkpoint), 0, actions)[3][1]
    assert 0 < reached < 1
    for threshold, solved in ((reached, True), (reached + 1e-6, False)):
        env = make(checkpoint, threshold=threshold)
        assert play(env, 0, actions)[3][2] is solved
        assert env.step(actions[0])[4].keys() == {"is_success", "mode", "success"}


def test_an_episode_is_truncated_at_its_time_limit() -> None:
    ends = [row[3] for row in play(make(world_model(), max_steps=4), 0, plan(5)[:, 0])]
    assert ends == [False, False, False, False, True, True]


def test_a_window_begins_at_what_was_imagined() -> None:
    """Its past is spaced as in training, and its actions are those sent since."""
    checkpoint = world_model("one camera", TWO)
    seen: list[dict[str, torch.Tensor]] = []
    encode = checkpoint.model.encode

    def note(given: Any, *rest: Any, **options: Any) -> Any:
        seen.append(given)
        return encode(given, *rest, **options)

    checkpoint.model.encode = note  # type: ignore[method-assign]
    dream, actions = Dream(checkpoint), plan(9, rows=2)
    dream.begin([first_frame(checkpoint.spec, s) for s in (0, 1)], [0, 1])
    frames = [dream.known[0]["front"]]
    for action in actions:
        frames.append(dream.step(action)[0]["front"])
    assert len(seen) == 9
    for step, given in enumerate(seen):
        begin = step // 6 * 6
        past = [frames[max(0, begin - 2)], frames[begin]]
        expected = checkpoint.inputs.normalize("video/front", torch.stack(past, 1))
        assert torch.equal(given["video/front"], expected)
        sent = [actions[min(begin + k, step)] for k in range(TWO.chunk)]
        chunk = torch.from_numpy(np.stack(sent, 1))
        assert torch.equal(given["action"], checkpoint.inputs.normalize("action", chunk))


def test_the_first_frame_is_the_start_as_training_would_see_it() -> None:
    checkpoint = world_model("two cameras")
    observation, _ = make(checkpoint).reset(seed=7)
    start = first_frame(checkpoint.spec, 7)
    np.testing.assert_array_equal(observation["agent_pos"], start["agent_pos"])
    for camera, frame in start["pixels"].items():
        resized = resize_frames(torch.from_numpy(frame).movedim(-1, 0), checkpoint.spec.image_size)
        np.testing.assert_array_equal(observation["pixels"][camera], resized.movedim(0, -1).numpy())


def test_spaces_are_those_of_the_real_world_where_it_gives_them() -> None:
    checkpoint = world_model("two cameras")
    image = gym.spaces.Box(0, 255, (*SIZE, 3), np.uint8)
    seen = gym.spaces.Dict(
        {
            "agent_pos": gym.spaces.Box(-0.1, 0.1, (3,), np.float32),
            "pixels": gym.spaces.Dict({"front": image, "wrist": image}),
        }
    )
    acts = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
    env = make(checkpoint, observation_space=seen, action_space=acts)
    assert env.observation_space == seen
    assert env.action_space == acts
    rows = play(env, 0, plan(3)[:, 0])
    assert all(row[0] in seen for row in rows)
    # What the box does not allow is not done.
    within = play(env, 0, np.clip(plan(3)[:, 0], -0.5, 0.5))
    assert [row[1] for row in rows] == [row[1] for row in within]
    plain = make(checkpoint)
    assert plain.observation_space["pixels"]["front"].shape == (16, 24, 3)


def test_the_picture_is_the_first_cameras() -> None:
    env = make(world_model("two cameras"))
    assert env.render() is None
    observation = play(env, 0, plan(2)[:, 0])[-1][0]
    np.testing.assert_array_equal(env.render(), observation["pixels"]["front"])
    assert env.metadata["render_fps"] == 20
    assert make(world_model("no camera")).render_mode is None
    together = make(world_model("two cameras"), ImaginedVectorEnv, 2)
    observations, _ = together.reset(seed=0)
    np.testing.assert_array_equal(together.render(), observations["pixels"]["front"])


def test_whoever_overwrites_what_they_were_shown_changes_nothing() -> None:
    checkpoint, actions = world_model(), plan(8, rows=2)
    found = []
    for vandal in (False, True):
        env = make(checkpoint, ImaginedVectorEnv, 2)
        observation, infos = env.reset(seed=0)
        for action in actions:
            if vandal:
                for array in (*flat(observation), *infos.values(), *env.render()):
                    array[:] = 0
            observation, _, _, _, infos = env.step(action)
        found.append(observation["pixels"]["front"])
    np.testing.assert_array_equal(*found)


def test_the_task_is_the_starts() -> None:
    checkpoint = world_model()
    tasks = checkpoint.spec.tasks

    def starts(seed: int) -> dict[str, Any]:
        return first_frame(checkpoint.spec, 0) | {"task": [tasks[0], tasks[1], ""][seed]}

    env = ImaginedVectorEnv(checkpoint, starts, 3, max_steps=5)
    env.reset(seed=0)
    assert env.get_attr("task_description") == (*tasks, None)
    assert env.dream.task.tolist() == [0, 1, -1]
    one = make(make_checkpoint(make_model(replace(checkpoint.spec, tasks=tasks[:1]), TWO),
                               checkpoint.objective))  # fmt: skip
    one.reset(seed=0)
    assert one.task_description == tasks[0]


def test_what_differs_from_the_stamp_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = world_model()
    monkeypatch.setattr(Dream, "step", lambda *_: pytest.fail("it imagined"))
    right = first_frame(checkpoint.spec, 0)
    frame = right["pixels"]["front"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"pixels": {"top": frame}}, r"sees cameras \['front'\], the start shows \['top'\]"),
        ({"pixels": frame}, "shows its frames by camera"),
        ({"pixels": {"front": frame / 255}}, "camera front: a frame is uint8.*float64"),
        ({"pixels": {"front": frame[..., :1]}}, r"camera front: .*\[20, 30, 1\]"),
        ({"agent_pos": np.zeros(2, np.float32)}, r"agent_pos has shape \[2\].*\['x', 'y', 'z'\]"),
        ({"agent_pos": np.full(3, np.nan)}, "agent_pos is not finite"),
        ({"task": "push the bax"}, "unknown task 'push the bax'. Did you mean 'push the box'"),
    ]
    for change, message in wrong:
        env = ImaginedEnv(checkpoint, lambda _, c=change: {**right, **c}, max_steps=5)  # type: ignore[misc]
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0)
    for change, message in (
        ({"action_names": ("a", "c")}, "action_names is .*'c'"),
        ({"fps": 30}, "this world does not fit the world model: fps is 30"),
        ({"cameras": ("top",)}, r"cameras is \('top',\), expected \('front',\)"),
    ):
        with pytest.raises(SpecMismatchError, match=message):
            make(checkpoint, robot=replace(checkpoint.spec, **change))
    make(checkpoint, robot=replace(checkpoint.spec, image_size=(480, 640), robot_type="arm"))
    seen, acts = spaces_of(checkpoint.spec)
    with pytest.raises(SpecMismatchError, match=r"sees cameras \['front'\], this world shows \[\]"):
        make(checkpoint, observation_space=gym.spaces.Dict({"agent_pos": seen["agent_pos"]}))
    with pytest.raises(SpecMismatchError, match="the action of this world.*knows 2 entries"):
        make(checkpoint, action_space=gym.spaces.Box(-1, 1, (3,), np.float32))
    assert acts.shape == (2,)


def test_models_that_cannot_be_a_world_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot tell success.*exploration=0.4"):
        make(world_model(success=False))
    with pytest.raises(ValueError, match=r"one frame in 2 only.*any_frame=0.5"):
        make(world_model(any_frame=0.0))
    with pytest.raises(ValueError, match="noise on its past up to 0.2"):
        make(world_model(history_noise=0.2), history=0.3)
    with pytest.raises(ValueError, match="max_steps=0"):
        make(world_model(), max_steps=0)


def test_a_model_of_each_frame_needs_no_others() -> None:
    """Windows then end where the frames do that it was trained on."""
    each = Horizon(past=2, past_stride=1, future=3, future_stride=1, chunk=8)
    checkpoint = world_model(horizon=each, any_frame=0.0)
    assert Dream(checkpoint).span == 3
    assert len(play(make(checkpoint), 0, plan(7)[:, 0])) == 8


def test_noise_on_the_past_begins_with_imagined_frames() -> None:
    checkpoint, actions = world_model(history_noise=0.4), plan(8)[:, 0]
    clean, noised = (play(make(checkpoint, history=h), 0, actions) for h in (0.0, 0.4))
    same = [a[1] == b[1] for a, b in zip(clean, noised, strict=True)]
    assert same == [True] * 7 + [False] * 2  # a window is six steps long


def test_wrong_calls_are_named() -> None:
    env = make(world_model())
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \[2\], found \[3\]"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.array([0, np.inf]))
    together = make(world_model(), ImaginedVectorEnv, 2)
    with pytest.raises(RuntimeError, match="before reset"):
        together.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="2 worlds take as many seeds, found 3"):
        together.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="without reset_mask"):
        together.reset(options={"reset_mask": np.ones(2, bool)})
    together.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \[2, 2\], found \[2\]"):
        together.step(np.zeros(2))


def test_success_must_last_as_long_as_patience_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is likely at one frame, then at three in a row; the same in the vector form."""
    said, imagine = [0.9, 0.1, 0.9, 0.9, 0.9, 0.9], Dream.step

    def judged(self: Dream, actions: np.ndarray) -> Any:
        video, state, success = imagine(self, actions)
        assert success is not None
        return video, state, torch.full_like(success, said[self.at - 1])

    monkeypatch.setattr(Dream, "step", judged)
    for patience, end in ((1, 1), (2, 4), (3, 5)):
        options: dict[str, Any] = {"patience": patience, "threshold": 0.8}
        ends = [row[2] for row in play(make(world_model(), **options), 0, plan(end)[:, 0])]
        assert ends == [False] * end + [True]
        rows = make(world_model(), ImaginedVectorEnv, 2, **options)
        rows.reset(seed=0)
        done = [rows.step(actions)[2].tolist() for actions in plan(end, rows=2)]
        assert done == [[False] * 2] * (end - 1) + [[True] * 2]
