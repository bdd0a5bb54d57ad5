"""`lerobot-eval` runs a checkpoint in our environments, as `scripts.evaluate` would."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs import make_env, make_env_pre_post_processors, preprocess_observation
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env_config
from lerobot.envs.utils import env_to_policy_features
from lerobot.policies.factory import make_pre_post_processors
from lerobot.scripts.lerobot_eval import eval_main, eval_policy
from lerobot.utils.import_utils import register_third_party_plugins

import envs
from lerobot_policy_selfflow import SelfflowConfig, SelfflowEnv, SelfflowPolicy
from policies.evaluation import episode_seeds
from tests.policies.lerobot_cli import run
from worldmodel.checkpoint import save_policy
from worldmodel.imagine import imagine
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.streams import derive
from worldmodel.tokens import Horizon
from worldmodel.types import STATISTICS, Spec, SpecMismatchError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HORIZON = Horizon(past=1, future=2, future_stride=3, chunk=6)
PICTURE = [24, 32]  # rendered; the model sees 16 x 16


@pytest.fixture(scope="module")
def spec() -> Spec:
    env: Any = envs.make("reach", cameras=()).unwrapped
    low, high = (np.append(v[:7], v[7:]) for v in (env.action_space.low, env.action_space.high))
    values = {"mean": (low + high) / 2, "std": (high - low) / 4, "min": low, "max": high}
    values |= {"q01": low, "q99": high}
    table = {name: values[name].tolist() for name in STATISTICS}
    return Spec(
        cameras=("front",),
        image_size=(16, 16),
        state_names=env.state_names,
        action_names=env.action_names,
        fps=20,
        tasks=(env.task_description,),
        stats={"state": table, "action": table},
        robot_type=env.robot_type,
        action_kind="absolute",
        action_targets=tuple(range(8)),
        action_rank=(3,) * 8,
    )


@pytest.fixture(scope="module")
def checkpoint(spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and a stamp of demonstrations with pictures of their own size."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = WorldModel(spec, HORIZON, ModelConfig(size="debug", patch=8))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source))
    world = {"env": "selfflow/Reach-v0", "image_size": PICTURE, "cameras": ["front"]}
    save_policy(folder, model, ObjectiveConfig(), {"environment": world | {"target": "hard"}})
    return folder


@pytest.fixture
def command_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", f"--policy.path={checkpoint}"])


def video(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return np.stack(frames)


# --- the command ---------------------------------------------------------------------------------


def test_lerobots_plugin_search_finds_policy_and_environments() -> None:
    register_third_party_plugins()
    assert PreTrainedConfig.get_choice_class("selfflow") is SelfflowConfig
    assert EnvConfig.get_choice_class("selfflow") is SelfflowEnv


def test_the_command_evaluates_and_films_what_was_seen_and_imagined(
    checkpoint: Path, tmp_path: Path
) -> None:
    run(
        eval_main,
        f"--policy.path={checkpoint}",
        "--policy.device=cpu",
        "--policy.n_action_steps=3",
        "--policy.save_predicted_video=true",
        "--env.type=selfflow",
        "--env.task=reach",
        "--env.episode_length=7",
        "--eval.n_episodes=2",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path}",
    )
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    assert info["overall"]["pc_success"] == 0
    for kind, width in (("eval", 256), ("pred", (16 + 4 + 16) * 12)):
        for episode in range(2):
            frames = video(tmp_path / "videos" / "selfflow_0" / f"{kind}_episode_{episode}.mp4")
            assert len(frames) == 7, kind
            assert frames.shape[2] == width


# --- environments --------------------------------------------------------------------------------


def test_the_world_looks_as_in_the_demonstrations(command_line: None) -> None:
    config = SelfflowEnv(task="reach")
    assert config.options == {"cameras": ["front"], "image_size": PICTURE, "target": "hard"}
    assert config.fps == 20
    found = {key: tuple(ft.shape) for key, ft in env_to_policy_features(config).items()}
    assert found == {
        "observation.images.front": (3, *PICTURE),
        "observation.state": (8,),
        "action": (8,),
    }
    other = SelfflowEnv(task="reach_around")  # nothing is known of it: what the model sees
    assert other.options == {"cameras": ["front"], "image_size": [16, 16]}


def test_options_that_differ_from_the_demonstrations_are_said(
    command_line: None, caplog: pytest.LogCaptureFixture
) -> None:
    config = SelfflowEnv(task="reach", options={"target": "easy", "image_size": 32})
    assert (config.options["target"], config.options["image_size"]) == ("easy", 32)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert ["target is easy" in warnings[0], "it is hard" in warnings[0]] == [True, True]
    assert "image_size is 32" in warnings[1]
    caplog.clear()
    SelfflowEnv(task="reach", options={"image_size": PICTURE})
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    SelfflowEnv(task="reach_around")
    assert "demonstrations in selfflow/Reach-v0, not in selfflow/ReachAround-v0" in caplog.text


def test_a_new_policys_world_looks_as_in_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meta").mkdir()
    world = {"env": "selfflow/Reach-v0", "seed": 3, "image_size": PICTURE, "target": None}
    (tmp_path / "meta" / "source.json").write_text(json.dumps(world | {"cameras": ["wrist"]}))
    monkeypatch.setattr(sys, "argv", ["lerobot-train", "--dataset.root", str(tmp_path)])
    expected = {"cameras": ["wrist"], "image_size": PICTURE}
    assert SelfflowEnv(task="reach").options == expected
    named = {"env": "selfflow/Reach-v0", "options": {"target": "hard"}} | expected
    (tmp_path / "meta" / "source.json").write_text(json.dumps(named))
    assert SelfflowEnv(task="reach").options == expected | {"target": "hard"}


def test_pictures_of_another_size_are_said_once_by_the_policy_too(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = SelfflowPolicy.from_pretrained(checkpoint)
    for size in (PICTURE, [32, 32], [32, 32]):
        observation = {
            "observation.images.front": torch.zeros(1, 3, *size),
            "observation.state": torch.zeros(1, 8),
        }
        policy.select_action(observation)
    assert caplog.text.count("rendered at 24x32") == 1


def test_a_world_that_is_not_the_checkpoints_is_refused(
    checkpoint: Path, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = json.loads((checkpoint / "config.json").read_text())
    values["spec"]["state_names"][0] = "shoulder"
    (tmp_path / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", f"--policy.path={tmp_path}"])
    with pytest.raises(SpecMismatchError, match="state_names.*shoulder"):
        SelfflowEnv(task="reach")
    monkeypatch.setattr(sys, "argv", ["lerobot-eval"])
    with pytest.raises(ValueError, match="Did you mean 'reach'"):
        SelfflowEnv(task="reech")
    with pytest.raises(ValueError, match="reach refuses --env.options="):
        SelfflowEnv(task="reach", options={"colour": "red"})


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """Two worlds side by side without cameras, as LeRobot makes them, and a plain one."""
    config = make_env_config("selfflow", task="reach", options={"cameras": []})
    vector = make_env(config, n_envs=2)["selfflow"][0]
    plain = envs.make("reach", cameras=())
    yield vector, plain
    vector.close()
    plain.close()


def test_seeds_are_the_resets_that_our_evaluation_reports(pair: tuple[Any, Any]) -> None:
    vector, plain = pair
    found = vector.reset(seed=[0, 1])[0]["agent_pos"]
    for row, seed in enumerate(episode_seeds(2)):
        assert np.array_equal(found[row], plain.reset(seed=seed)[0]["agent_pos"])


def test_success_is_counted_as_our_evaluation_counts_it(
    checkpoint: Path, pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expert reaches the target; its neighbour, whose episode goes on, never does."""
    vector, _ = pair
    policy = SelfflowPolicy.from_pretrained(checkpoint)
    steps: list[int] = []

    def act(batch: dict[str, Any]) -> torch.Tensor:
        if not steps or vector.envs[0].unwrapped.data.time < 0.01:
            steps.append(0)
            expert = envs.make_expert("reach", vector.envs[0], seed=0)
            expert.reset()
            policy.expert = expert
        hold = batch["observation.state"].clone()
        hold[0] = torch.from_numpy(policy.expert.act())
        return hold

    monkeypatch.setattr(policy, "select_action", act)
    world = make_env_pre_post_processors(SelfflowEnv(task="reach"), policy.config)
    own = make_pre_post_processors(policy.config)
    info = eval_policy(vector, policy, *world, *own, n_episodes=4, start_seed=0)
    assert [e["success"] for e in info["per_episode"]] == [True, False] * 2
    assert [e["sum_reward"] for e in info["per_episode"]] == [1.0, 0.0] * 2


def test_a_finished_world_waits_for_its_neighbours(pair: tuple[Any, Any]) -> None:
    vector, _ = pair
    vector.reset(seed=[0, 1], options={"lerobot_new_rollout": True})
    slot = vector.envs[0]
    slot._frozen = (slot.unwrapped.current_observation(), 0.0, True, False, {"is_success": True})
    before = slot.unwrapped.data.time
    for _ in range(3):
        vector.step(np.zeros((2, 8), np.float32))
    assert slot.unwrapped.data.time == before
    assert slot.task == "reach"


# --- what it imagines ----------------------------------------------------------------------------


def test_predicted_frames_are_what_the_world_model_imagined(checkpoint: Path) -> None:
    policy = SelfflowPolicy.from_pretrained(checkpoint)
    policy.config.save_predicted_video = True
    env = envs.make("reach", cameras=("front",), image_size=(16, 16))
    observation = env.reset(seed=0)[0]
    pictures, batches, collected = [], [], []
    for _ in range(5):
        batches.append(preprocess_observation(observation))
        pictures.append(observation["pixels"]["front"])
        action = policy.select_action(batches[-1])
        assert policy.last_predicted_latents is not None
        collected.append(policy.last_predicted_latents)
        observation = env.step(action[0].numpy())[0]
    env.close()
    latents = torch.cat(collected, dim=2)
    assert latents.shape == (1, 3, 5, 16, 16 + 4 + 16)
    seen, shown = latents[0, ..., :16], latents[0, ..., 20:]
    assert np.array_equal(seen.permute(1, 2, 3, 0).numpy(), np.stack(pictures))
    assert torch.equal(shown[:, :3], seen[:, :1].repeat(1, 3, 1, 1))  # nothing is imagined yet

    first = SelfflowPolicy.from_pretrained(checkpoint)
    chunk = first.predict_action_chunk(batches[0])
    expected = imagine(
        first.flow.checkpoint,
        {"front": torch.from_numpy(pictures[0]).movedim(-1, 0)[None, None]},
        batches[0]["observation.state"][:, None],
        chunk,
        steps=2,
        seed=derive(policy.seed, "lerobot", policy._episode, 1),
    )
    assert expected.frames.tolist() == [3, 6]
    assert torch.equal(shown[:, 3], expected.video["front"][0, 0])
    frames = policy.decode_predicted_latents(latents)
    assert frames.shape == (5, 192, (16 + 4 + 16) * 12, 3)
    assert np.array_equal(frames[:, ::12, : 16 * 12 : 12], np.stack(pictures))


def test_nothing_is_imagined_unless_asked_for(checkpoint: Path) -> None:
    policy = SelfflowPolicy.from_pretrained(checkpoint)
    policy.select_action(
        {
            "observation.images.front": torch.zeros(1, 3, 16, 16),
            "observation.state": torch.zeros(1, 8),
        }
    )
    assert policy.last_predicted_latents is None


def test_a_policy_that_imagines_nothing_says_so(spec: Spec, tmp_path: Path) -> None:
    model = WorldModel(spec, Horizon(past=1, future=0, chunk=6), ModelConfig(size="debug"))
    save_policy(tmp_path, model, ObjectiveConfig(patterns={"act": 1.0}), {})
    policy = SelfflowPolicy.from_pretrained(tmp_path)
    policy.config.save_predicted_video = True
    with pytest.raises(ValueError, match="without future frames"):
        policy.select_action(
            {
                "observation.images.front": torch.zeros(1, 3, 16, 16),
                "observation.state": torch.zeros(1, 8),
            }
        )
