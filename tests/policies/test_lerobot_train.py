"""`lerobot-train` trains the policy, resumes it bit for bit, and its checkpoints are ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draccus.utils import ParsingError
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata, resolve_delta_timestamps
from lerobot.policies.factory import make_policy
from lerobot.scripts.lerobot_train import train
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Subset

from lerobot_policy_selfflow import SelfflowConfig, SelfflowPolicy
from policies.flow_policy import FlowPolicy
from tests.datasets import write_dataset
from tests.policies.lerobot_cli import run
from worldmodel.checkpoint import CheckpointError, open_checkpoint, save_policy
from worldmodel.data import DataConfig, DatasetError, open_data, read_facts
from worldmodel.finetune import start_from
from worldmodel.model import WorldModel
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.train import NotFiniteError
from worldmodel.types import Spec, SpecMismatchError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NAMES: dict[str, Any] = {"state_names": ["x", "y"], "action_names": ["x", "y"]}
SMALL: dict[str, Any] = {
    "size": "debug",
    "image_size": 24,
    "n_obs_steps": 2,
    "past_stride": 2,
    "future": 2,
    "future_stride": 2,
    "chunk_size": 8,
    "objective": {"draws": {"act": 2, "act_prefix": 2}},
}
COMMAND = [
    "--policy.type=selfflow",
    "--policy.device=cpu",
    "--policy.optimizer_lr=0.01",
    "--policy.scheduler_warmup_steps=2",
    "--policy.schedule=cooldown",
    *(f"--policy.{k}={str(v).replace(chr(39), '')}" for k, v in SMALL.items()),
    "--dataset.repo_id=tests/squares",
    "--dataset.video_backend=pyav",
    "--num_workers=0",
    "--batch_size=8",
    "--log_freq=2",
    "--env_eval_freq=0",
    "--seed=5",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "squares"
    return write_dataset(root, episodes=3, length=14, size=32, tasks=["left", "right"], **NAMES)


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps (and so into the second epoch) with a checkpoint after the third."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(
        train,
        *COMMAND,
        f"--dataset.root={dataset}",
        *("--steps=6", "--save_freq=3", f"--output_dir={out}"),
    )
    return out


def metadata(root: Path) -> LeRobotDatasetMetadata:
    return LeRobotDatasetMetadata("tests/squares", root=root)


def new_policy(root: Path, **settings: Any) -> SelfflowPolicy:
    """A fresh policy, made by LeRobot's factory."""
    config = SelfflowConfig(device="cpu", **(SMALL | settings))
    policy = make_policy(config, ds_meta=metadata(root))
    assert isinstance(policy, SelfflowPolicy)
    return policy


def lerobot_batch(root: Path, policy: SelfflowPolicy, indices: list[int]) -> dict[str, Any]:
    """A batch as `lerobot-train` hands it to `forward`."""
    deltas = resolve_delta_timestamps(policy.config, metadata(root))
    data = LeRobotDataset(
        "tests/squares",
        root=root,
        delta_timestamps=deltas,
        video_backend="pyav",
        return_uint8=True,
    )
    batch = next(iter(DataLoader(Subset(data, indices), batch_size=len(indices))))
    return {k: v / 255 if getattr(v, "dtype", 0) == torch.uint8 else v for k, v in batch.items()}


def files(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint but the random states, which nothing of ours draws from."""
    folder = run / "checkpoints" / f"{step:06d}"
    return {
        f"{path.name}/{key}": value
        for path in sorted(folder.rglob("*.safetensors"))
        if path.name != "rng_state.safetensors"
        for key, value in load_file(path).items()
    }


# --- what the policy learns from -----------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"n_obs_steps": 1, "future": 0}])
def test_windows_and_facts_are_those_of_our_own_training(dataset: Path, settings: dict) -> None:
    policy = new_policy(dataset, **settings)
    window = policy.config.window
    ours = open_data(
        DataConfig(
            root=str(dataset),
            image_size=24,
            validation=0.0,
            **{k: window[k] for k in ("past", "past_stride", "future", "future_stride", "chunk")},
        ),
        progress=False,
    )
    assert policy.spec == ours.spec
    assert Spec.from_dict(policy.config.spec) == ours.spec
    assert policy.learner is not None
    indices = [0, 13, 14, 20, 41]  # both ends of an episode, its middle, the very last frame
    found = policy.learner.window(lerobot_batch(dataset, policy, indices))
    expected = ours.train.batch(np.array(indices))
    assert set(found.video) == {"front"}
    assert torch.equal(found.video["front"], expected.video["front"])
    for name in ("state", "action", "frame_valid", "action_valid", "task", "index"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_facts_are_read_without_decoding_a_frame(dataset: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(dataset, blind)
    for clip in (blind / "videos").rglob("*.mp4"):
        clip.write_bytes(b"no video")
    config = DataConfig(root=str(blind), validation=0.3)
    assert (
        read_facts(config).spec
        == open_data(DataConfig(root=str(dataset), validation=0.3), progress=False).spec
    )


def test_a_dataset_that_lerobot_cuts_no_windows_of_is_refused_with_the_way(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", episodes=1, keys={"observation.state": "state"})
    with pytest.raises(ValueError, match=r"\['state'\].*scripts.train data.root="):
        SelfflowPolicy(SelfflowConfig(device="cpu"), dataset_meta=metadata(root))


def test_frames_that_lerobots_windows_do_not_hold_are_refused_with_the_way(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"any_frame is 0.2.*scripts.train data.root=.*squares"):
        new_policy(dataset, objective={"any_frame": 0.2})
    SelfflowConfig(device="cpu", objective={"any_frame": 0.2})  # as of a checkpoint that only acts


def test_episodes_that_are_no_demonstrations_are_not_imitated(tmp_path: Path) -> None:
    """They are refused, with the command that learns from them what they are good for."""
    marks = {"demonstration": [True, False, True, False]}
    root = write_dataset(tmp_path / "mixed", episodes=4, length=9, flags=marks, **NAMES)
    with pytest.raises(DatasetError, match=r"imitate all 4 .* 2 of them .*\(1, 3\).*scripts.train"):
        new_policy(root)
    shown = {"demonstration": [True] * 4}
    assert new_policy(write_dataset(tmp_path / "shown", episodes=4, length=9, flags=shown, **NAMES))


def test_a_policy_does_not_speak_of_success_that_lerobots_windows_do_not_show(
    tmp_path: Path,
) -> None:
    """A head that nothing trains would answer at random."""
    marks = {"next.success": [[*[False] * 5, *[True] * 4]] * 2}
    root = write_dataset(tmp_path / "marked", episodes=2, length=9, flags=marks, **NAMES)
    policy = new_policy(root)
    assert not policy.spec.has_success
    assert policy.model.success is None
    assert read_facts(DataConfig(root=str(root), chunk=8)).spec.has_success


# --- a step --------------------------------------------------------------------------------------


def test_the_average_and_not_the_student_acts_and_follows_updates(dataset: Path) -> None:
    policy = new_policy(dataset)
    assert policy.learner is not None
    student, average = policy.learner.objective.model, policy.model
    before = {k: v.clone() for k, v in average.state_dict().items()}
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    policy.train()
    loss, logs = policy.forward(lerobot_batch(dataset, policy, [1, 2, 3]))
    loss.backward()
    optimizer.step()
    moved = [k for k, v in student.state_dict().items() if not torch.equal(v, before[k])]
    assert moved
    assert all(torch.equal(v, before[k]) for k, v in average.state_dict().items())
    policy.update()
    decay = 2 / 11
    for key in moved:
        expected = decay * before[key] + (1 - decay) * student.state_dict()[key]
        torch.testing.assert_close(average.state_dict()[key], expected)
    assert all(np.isfinite(v) and k.endswith("/loss") for k, v in logs.items())
    assert policy.learner.step == 1
    assert not any(p.requires_grad for p in average.parameters())


def test_only_matrices_decay_and_everything_trained_is_optimised(dataset: Path) -> None:
    policy = new_policy(dataset)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.01, 0.0)
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim < 2 for p in vectors["params"])
    optimised = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert optimised == {id(p) for p in policy.parameters() if p.requires_grad}


def test_held_out_losses_follow_from_the_batch_alone(dataset: Path) -> None:
    policy = new_policy(dataset).eval()
    batch = lerobot_batch(dataset, policy, [4, 9])
    with torch.no_grad():
        first = policy.forward(batch)[0]
        policy.forward(lerobot_batch(dataset, policy, [5, 30]))
        assert torch.equal(policy.forward(batch)[0], first)


def test_a_loss_that_is_no_number_stops_the_run(dataset: Path) -> None:
    policy = new_policy(dataset, objective={"patterns": {"act": 1.0}}).train()
    batch = lerobot_batch(dataset, policy, [4])
    batch["action"][0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="optimizer_lr"):
        policy.forward(batch)


# --- a run ---------------------------------------------------------------------------------------


def test_a_resumed_run_equals_the_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "resumed"
    step = "checkpoints/000003"
    shutil.copytree(whole / step, out / step)
    run(
        train,
        f"--config_path={out / step / 'pretrained_model' / 'train_config.json'}",
        "--resume=true",
        f"--output_dir={out}",
    )
    expected, found = files(whole, 6), files(out, 6)
    assert expected.keys() == found.keys()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    assert any(not torch.equal(v, files(whole, 3)[k]) for k, v in found.items() if "model" in k)


def test_its_checkpoint_is_one_of_ours(whole: Path, dataset: Path) -> None:
    opened = open_checkpoint(whole)  # finds checkpoints/last/pretrained_model
    assert opened.path.parts[-2:] == ("000006", "pretrained_model")
    assert opened.stamp["step"] == 6
    assert opened.stamp["dataset"]["roots"] == ["squares"]
    data = DataConfig(root=str(dataset), image_size=24, chunk=8, validation=0.0)
    assert opened.spec == read_facts(data).spec
    policy = SelfflowPolicy.from_pretrained(opened.path)
    assert policy.learner is None
    weights = opened.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in policy.model.state_dict().items())
    raw = load_file(opened.path / "training.safetensors")
    assert any(not torch.equal(v, raw[f"model.{k}"]) for k, v in weights.items())
    FlowPolicy.from_checkpoint(whole)
    assert (
        start_from(WorldModel(opened.spec, opened.model.horizon, opened.model.config), whole) == []
    )
    with pytest.raises(ValueError, match="opened to act"):
        policy.forward({})


def test_fine_tuning_on_other_data_starts_as_init_does(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_dataset(
        tmp_path / "other", episodes=2, length=12, tasks=["right", "up"], seed=7, **NAMES
    )
    folder = open_checkpoint(whole).path
    policy = SelfflowPolicy.from_pretrained(folder, dataset_meta=metadata(other))
    assert policy.learner is not None
    assert policy.learner.step == 0
    assert "fine-tuning: tasks that start afresh: 'up'" in caplog.text
    expected = WorldModel(policy.spec, policy.horizon, policy.learner.objective.model.config)
    start_from(expected, folder)
    for model in (policy.model, policy.learner.objective.model):
        for key, value in model.state_dict().items():
            if key != "task.weight":  # whose new row is drawn with the seed
                assert torch.equal(value, expected.state_dict()[key]), key
    policy.save_pretrained(tmp_path / "saved")
    again = open_checkpoint(tmp_path / "saved")
    assert again.spec == policy.spec
    assert again.stamp["init"] == str(folder)


def test_a_checkpoint_of_our_own_training_is_fine_tuned(dataset: Path, tmp_path: Path) -> None:
    spec = new_policy(dataset).spec
    model = WorldModel(spec, new_policy(dataset).horizon, new_policy(dataset).model.config, seed=3)
    save_policy(tmp_path, model, ObjectiveConfig(), {})
    policy = SelfflowPolicy.from_pretrained(tmp_path, dataset_meta=metadata(dataset))
    assert policy.learner is not None
    weights = policy.learner.objective.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_another_robots_data_is_refused(whole: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", episodes=1, **(NAMES | {"state_names": ["x", "z"]}))
    with pytest.raises(SpecMismatchError, match="state_names"):
        SelfflowPolicy.from_pretrained(open_checkpoint(whole).path, dataset_meta=metadata(other))


def test_a_training_state_that_does_not_fit_is_named(
    whole: Path, dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(open_checkpoint(whole).path, folder)
    state = load_file(folder / "training.safetensors")
    save_file({k: v for k, v in state.items() if "head" not in k}, folder / "training.safetensors")
    with pytest.raises(CheckpointError, match="another objective"):
        SelfflowPolicy.from_pretrained(folder, dataset_meta=metadata(dataset))


# --- settings ------------------------------------------------------------------------------------


def test_what_a_checkpoint_was_trained_with_cannot_be_overridden(whole: Path) -> None:
    folder = open_checkpoint(whole).path
    for override in ("size=base", "chunk_size=12", "image_size=[24,48]", "future=1"):
        with pytest.raises(ParsingError) as refused:  # draccus's, which shows the reason
            SelfflowConfig.from_pretrained(folder, cli_overrides=[f"--{override}"])
        name = override.split("=")[0]
        assert f"{name} is " in str(refused.value.__cause__), override
        assert "was trained with" in str(refused.value.__cause__)
    config = SelfflowConfig.from_pretrained(
        folder, cli_overrides=["--n_action_steps=2", "--size=debug"]
    )
    assert (config.n_action_steps, config.image_size) == (2, [24, 24])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"size": "huge"}, "unknown model size 'huge'"),
        ({"objective": {"nane": "flow"}}, "Did you mean 'name'"),
        ({"objective": {"patterns": {"acts": 1.0}}}, "unknown patterns"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"chunk_size": 4}, r"n_action_steps is 8.*\[1, 4\]"),
    ],
)
def test_senseless_settings_are_refused(settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SelfflowConfig(device="cpu", **settings)


def test_the_learning_rate_is_that_of_our_own_training() -> None:
    config = SelfflowConfig(device="cpu", scheduler_warmup_steps=4, schedule="cooldown")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = config.get_scheduler_preset().build(optimizer, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [min(1, (k + 1) / 4) * min(1, (1 - k / 20) / 0.3) for k in range(20)]
    np.testing.assert_allclose(rates, expected)
