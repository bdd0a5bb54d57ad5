"""A checkpoint folder, opened by LeRobot's own loader, acts as our own code does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_policy_selfflow import SelfflowConfig, SelfflowPolicy
from policies.chunk_fit import fit_chunk
from policies.flow_policy import FlowPolicy, PolicyConfig
from policies.types import Observation
from worldmodel.checkpoint import CheckpointError, open_checkpoint, save_policy
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.sampler import sample
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.streams import derive
from worldmodel.tokens import Horizon, pattern
from worldmodel.types import STATISTICS, Spec

SIZE = (16, 24)
HORIZON = Horizon(past=2, past_stride=2, future=1, future_stride=2, chunk=6)


def table(low: float, high: float, dimensions: int) -> dict[str, list[float]]:
    values = {"mean": (low + high) / 2, "std": (high - low) / 4, "min": low, "max": high}
    values |= {"q01": low, "q99": high}
    return {name: [values[name]] * dimensions for name in STATISTICS}


SPEC = Spec(
    cameras=("front", "wrist"),
    image_size=SIZE,
    state_names=("a", "b", "c"),
    action_names=("a", "b"),
    fps=20,
    tasks=("reach the ball", "push the box"),
    stats={"state": table(-2.0, 3.0, 3), "action": table(-1.0, 5.0, 2)},
)


SMOOTH = replace(SPEC, action_kind="absolute", action_targets=(1, -1), action_rank=(3, 2))


def save(folder: Path, objective: str, spec: Spec = SPEC, **options: Any) -> None:
    """A checkpoint with random weights everywhere: fresh heads are zero and would hide mistakes."""
    model = WorldModel(spec, HORIZON, ModelConfig(size="debug", patch=8))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source))
    save_policy(folder, model, ObjectiveConfig(name=objective, **options), {"made by": "a test"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder, "selfflow")
    return folder


@pytest.fixture
def policy(checkpoint: Path) -> SelfflowPolicy:
    return SelfflowPolicy.from_pretrained(checkpoint)


def batch(rows: int = 2, seed: int = 0, size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    """An observation as LeRobot's evaluation passes it on."""
    g = torch.Generator().manual_seed(seed)
    frames = {
        f"observation.images.{camera}": torch.randint(256, (rows, 3, *size), generator=g) / 255
        for camera in SPEC.cameras
    }
    return {**frames, "observation.state": torch.randn(rows, 3, generator=g)}


def test_lerobot_resolves_config_and_policy_by_the_type_in_the_folder(checkpoint: Path) -> None:
    config = PreTrainedConfig.from_pretrained(checkpoint)
    assert type(config) is SelfflowConfig
    assert get_policy_class(config.type) is SelfflowPolicy
    assert Spec.from_dict(config.spec) == SPEC
    assert config.horizon() == HORIZON
    assert config.observation_delta_indices == [-2, 0, 2]
    assert config.action_delta_indices == list(range(6))


def test_every_weight_is_the_checkpoints(checkpoint: Path, policy: SelfflowPolicy) -> None:
    ours = open_checkpoint(checkpoint).model.state_dict()
    theirs = policy.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_chunk_is_what_our_sampler_gives(checkpoint: Path, policy: SelfflowPolicy) -> None:
    noise = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(1))
    observations = [batch(seed=i) for i in range(4)]
    for observation in observations[:-1]:
        policy.predict_action_chunk(observation)
    found = policy.predict_action_chunk(observations[-1], noise=noise)

    opened = open_checkpoint(checkpoint)
    past = [observations[1], observations[3]]  # a stride of two frames
    given = {}
    for camera in SPEC.cameras:
        frames = torch.stack([o[f"observation.images.{camera}"] for o in past], 1)
        name = f"video/{camera}"
        given[name] = opened.inputs.normalize(name, (frames * 255).round().to(torch.uint8))
    states = torch.stack([o["observation.state"] for o in past], 1)
    given["state"] = opened.inputs.normalize("state", states)
    expected = sample(
        opened.model,
        pattern("act", HORIZON),
        given,
        torch.tensor([-1, -1]),
        {"action": noise[:, :, None]},
        policy.config.sampling_steps,
        opened.objective.time,
    ).data["action"]
    expected = opened.inputs.denormalize("action", expected)
    assert found.shape == (2, 6, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_select_action_plays_a_chunk_before_it_computes_the_next(policy: SelfflowPolicy) -> None:
    chunk = policy.predict_action_chunk(batch())
    policy.reset()
    policy._episode -= 1  # the same noise again
    played = [policy.select_action(batch()) for _ in range(policy.config.n_action_steps)]
    torch.testing.assert_close(torch.stack(played, 1), chunk[:, : len(played)], rtol=0, atol=0)
    assert not policy._waiting


# --- chunks fitted by polynomials ----------------------------------------------------------------


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose demonstrations were smooth, and began at the joint "b"."""
    folder = tmp_path_factory.mktemp("smooth")
    save(folder, "selfflow", SMOOTH)
    return folder


def shown(observation: dict[str, Tensor]) -> Observation:
    """The same observation as our own evaluation passes it on."""
    images = {
        camera: (observation[f"observation.images.{camera}"] * 255).round().byte().movedim(1, -1)
        for camera in SPEC.cameras
    }
    return Observation(
        {camera: frames.numpy() for camera, frames in images.items()},
        observation["observation.state"].numpy(),
    )


@pytest.mark.parametrize("facts", ["smooth", "checkpoint"])
@pytest.mark.parametrize("execute", [1, 2, 3, 4, 6])
def test_an_episode_is_played_as_our_own_policy_plays_it(
    facts: str, execute: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(facts)
    theirs = SelfflowPolicy.from_pretrained(folder)
    theirs.config.n_action_steps = execute
    steps = theirs.config.sampling_steps
    ours = FlowPolicy.from_checkpoint(folder, PolicyConfig(steps=steps, execute=execute))
    for episode in range(2):
        if episode:
            theirs.reset()
        ours.reset([derive(theirs.seed, "lerobot", theirs._episode, row) for row in range(2)])
        for t in range(3 * execute + 1):
            now = batch(seed=100 * episode + t)
            expected = ours.act(shown(now), np.ones(2, bool)).action
            assert np.array_equal(theirs.select_action(now).numpy(), expected)


def test_actions_of_a_smooth_checkpoint_are_fitted_and_joined(smooth: Path) -> None:
    """From step to step, across the seams between chunks: no more than the polynomials allow."""
    policy = SelfflowPolicy.from_pretrained(smooth)
    policy.flow.config.history_weight = 1e10
    played = np.stack([policy.select_action(batch(seed=t)).numpy() for t in range(9)], axis=1)
    begin = batch(seed=0)["observation.state"].numpy()
    # Three coefficients, all of them taken by the three known commands, the joint's at first.
    np.testing.assert_allclose(played[..., 0], begin[:, 1:2].repeat(9, 1), atol=1e-3)
    assert np.abs(np.diff(played[:, :3, 1], n=2, axis=1)).max() < 1e-4  # a straight line
    assert np.abs(np.diff(played[:, :3, 1], axis=1)).max() > 1e-3


def test_a_chunk_alone_is_fitted_but_joined_to_the_joints_at_most(smooth: Path) -> None:
    """The first of an episode begins at the joints; before a later one stands nothing known."""
    noise = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(1))
    fitted, raw = (SelfflowPolicy.from_pretrained(smooth) for _ in range(2))
    raw.flow.rank = np.zeros(2, np.int64)
    for episode in range(2):
        for chunk in range(3):
            now = batch(seed=chunk)
            found = fitted.predict_action_chunk(now, noise=noise).numpy()
            sampled = raw.predict_action_chunk(now, noise=noise).numpy()
            nothing = np.zeros((2, 0, 2), np.float32)
            expected = fit_chunk(sampled, nothing, np.array([3, 2]), 100.0)
            if chunk == 0:
                rest = now["observation.state"][:, None, [1, 1]].repeat(1, 3, 1).numpy()
                joined = fit_chunk(sampled, rest, np.array([3, 0]), 100.0)
                assert np.abs(joined[..., 0] - expected[..., 0]).max() > 1e-2
                expected[..., 0] = joined[..., 0]
            assert np.array_equal(found, expected), (episode, chunk)
        fitted.reset()
        raw.reset()


def test_the_facts_of_actions_survive_lerobots_saving(smooth: Path, tmp_path: Path) -> None:
    policy = SelfflowPolicy.from_pretrained(smooth)
    assert policy.spec == SMOOTH
    assert policy.flow.rank.tolist() == [3, 2]
    policy.save_pretrained(tmp_path)
    assert SelfflowPolicy.from_pretrained(tmp_path).spec == SMOOTH
    assert open_checkpoint(tmp_path).spec == SMOOTH


def test_a_world_model_of_any_frame_and_success_acts_and_imagines(tmp_path: Path) -> None:
    """As `lerobot-eval` opens it; what it saves again is the same."""
    folder = tmp_path / "trained"
    folder.mkdir()
    spec = replace(SMOOTH, has_success=True)
    save(folder, "selfflow", spec, any_frame=0.3, history_noise=0.2)
    config = PreTrainedConfig.from_pretrained(folder)
    assert isinstance(config, SelfflowConfig)
    config.save_predicted_video = True
    policy = SelfflowPolicy.from_pretrained(folder, config=config)
    assert policy.spec == spec
    assert policy.model.success is not None
    played = [policy.select_action(batch(seed=t)) for t in range(9)]
    assert all(action.isfinite().all() for action in played)
    chunks = range(0, 9, policy.config.n_action_steps)
    assert sorted(policy._imagined) == [0, *(begin + 2 for begin in chunks)]  # its grid's frame
    assert policy.last_predicted_latents is not None
    policy.save_pretrained(tmp_path / "again")
    again = open_checkpoint(tmp_path / "again")
    assert (again.objective.any_frame, again.objective.history_noise) == (0.3, 0.2)
    assert again.spec == spec


# --- seeds, frames, tasks ------------------------------------------------------------------------


def test_chunks_follow_from_seed_episode_chunk_and_row(checkpoint: Path) -> None:
    first, second = (SelfflowPolicy.from_pretrained(checkpoint) for _ in range(2))
    a, b = first.predict_action_chunk(batch()), second.predict_action_chunk(batch())
    assert torch.equal(a, b)
    assert not torch.equal(a, first.predict_action_chunk(batch()))  # the next chunk
    first.reset()
    assert not torch.equal(a, first.predict_action_chunk(batch()))  # the next episode
    alone = SelfflowPolicy.from_pretrained(checkpoint)
    row = {key: value[:1] for key, value in batch().items()}
    torch.testing.assert_close(alone.predict_action_chunk(row), a[:1], rtol=1e-4, atol=1e-4)


def test_reset_forgets_the_frames_of_the_last_episode(policy: SelfflowPolicy) -> None:
    noise = torch.zeros(2, 6, 2)
    fresh = policy.predict_action_chunk(batch(seed=9), noise=noise)
    after = policy.predict_action_chunk(batch(seed=8), noise=noise)
    policy.reset()
    assert torch.equal(policy.predict_action_chunk(batch(seed=9), noise=noise), fresh)
    policy.reset()
    assert not torch.equal(policy.predict_action_chunk(batch(seed=8), noise=noise), after)


def test_a_regression_checkpoint_predicts_in_one_step_from_nothing(tmp_path: Path) -> None:
    save(tmp_path, "regression")
    policy = SelfflowPolicy.from_pretrained(tmp_path)
    first = policy.predict_action_chunk(batch())
    assert torch.equal(policy.predict_action_chunk(batch()), first)


def test_the_task_matters_and_an_unknown_one_is_named(policy: SelfflowPolicy) -> None:
    noise = torch.zeros(2, 6, 2)
    chunks = []
    for task in ("reach the ball", ["push the box"] * 2, None):
        policy.reset()
        chunks.append(policy.predict_action_chunk({**batch(), "task": task}, noise=noise))
    assert not torch.equal(chunks[0], chunks[1])
    assert not torch.equal(chunks[0], chunks[2])
    with pytest.raises(ValueError, match="reach the bal.*Did you mean 'reach the ball'"):
        policy.predict_action_chunk({**batch(), "task": "reach the bal"})


def test_images_of_any_size_are_resized_as_in_training(policy: SelfflowPolicy) -> None:
    assert policy.predict_action_chunk(batch(size=(33, 47))).shape == (2, 6, 2)


def test_what_is_missing_or_misshapen_is_named(policy: SelfflowPolicy) -> None:
    without = batch()
    del without["observation.images.wrist"]
    with pytest.raises(KeyError, match="observation.images.wrist"):
        policy.select_action(without)
    with pytest.raises(ValueError, match="expected 4 dimensions"):
        policy.select_action({k: v[0] for k, v in batch().items()})
    policy.select_action(batch(rows=2))
    with pytest.raises(ValueError, match="reset"):
        policy.select_action(batch(rows=3))


def test_our_processors_are_those_lerobot_would_write(
    checkpoint: Path, policy: SelfflowPolicy, tmp_path: Path
) -> None:
    for pipeline in make_pre_post_processors(policy.config):  # made afresh by the adapter
        pipeline.save_pretrained(tmp_path, config_filename=f"{pipeline.name}.json")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in checkpoint.glob("policy_p*"))
    for name in names:
        if name.endswith(".json"):
            written = json.loads((checkpoint / name).read_text())
            assert written == json.loads((tmp_path / name).read_text())
        else:
            ours, theirs = load_file(checkpoint / name), load_file(tmp_path / name)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_pipelines_of_the_folder_pass_units_through(
    checkpoint: Path, policy: SelfflowPolicy
) -> None:
    before, after = make_pre_post_processors(
        policy.config,
        pretrained_path=str(checkpoint),
        # What lerobot-eval overrides: it fails where a step of this name is missing.
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {}},
        },
    )
    observation = batch()
    seen = before(dict(observation))
    assert all(torch.equal(seen[key], value) for key, value in observation.items())
    action = policy.select_action(seen)
    assert torch.equal(after(action), action)


def test_saving_through_lerobot_gives_the_same_policy(
    checkpoint: Path, policy: SelfflowPolicy, tmp_path: Path
) -> None:
    policy.save_pretrained(tmp_path)
    again = SelfflowPolicy.from_pretrained(tmp_path)
    assert again.config == policy.config
    noise = torch.zeros(2, 6, 2)
    a, b = (p.predict_action_chunk(batch(), noise=noise) for p in (policy, again))
    assert torch.equal(a, b)
    assert open_checkpoint(tmp_path).spec == SPEC


@pytest.mark.parametrize("damage", ["missing", "unexpected", "truncated"])
def test_damaged_weights_are_refused_by_name(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
        match = "model.safetensors"
    else:
        tensors = load_file(weights)
        if damage == "missing":
            del tensors["model.head.action.bias"]
        else:
            tensors["model.extra"] = torch.zeros(1)
        save_file(tensors, weights)
        match = f"{damage}.*{'head.action.bias' if damage == 'missing' else 'extra'}"
    with pytest.raises(CheckpointError, match=match):
        SelfflowPolicy.from_pretrained(folder)


def test_a_policy_without_checkpoint_or_dataset_says_where_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"scripts\.train"):
        SelfflowPolicy(SelfflowConfig(device="cpu"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"n_action_steps": 17}, "n_action_steps is 17"),
        ({"sampling_steps": 0}, "sampling_steps is 0"),
        (
            {"normalization_mapping": {"STATE": NormalizationMode.MEAN_STD}},
            "must be IDENTITY",
        ),
    ],
)
def test_senseless_settings_are_refused(settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SelfflowConfig(device="cpu", **settings)
