"""HDF5 demonstrations: recognised, read as they are, and refused by what is wrong with them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from tests.hdf5_files import ENV_ARGS, OSC_POSE, encode, write_aloha, write_robomimic
from worldmodel.data.errors import BrokenError, DatasetError, EmptyError, KeysError, RootError
from worldmodel.data.hdf5 import Choice, Demonstrations, open_demonstrations
from worldmodel.data.hdf5.aloha import BIMANUAL

Change = Callable[[h5py.File], None]


@pytest.fixture(scope="module")
def robomimic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demos 1, 2 and 10; the second fails."""
    path = tmp_path_factory.mktemp("robomimic") / "demo.hdf5"
    return write_robomimic(path, numbers=(1, 2, 10), solved=(True, False, True))


@pytest.fixture(scope="module")
def aloha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aloha(tmp_path_factory.mktemp("aloha") / "plain", numbers=(1, 2, 10))


def opened(source: Path | str, **choice: Any) -> Demonstrations:
    return open_demonstrations(str(source), Choice(**choice))


def refused(source: Path | str, error: type[DatasetError], *words: str, **choice: Any) -> None:
    with pytest.raises(error) as caught:
        opened(source, **choice)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def names(found: Demonstrations) -> list[str]:
    return [episode.name for episode in found.episodes]


def decoded(row: np.ndarray) -> np.ndarray:
    picture = cv2.imdecode(row, cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


# --- what is in the files ------------------------------------------------------------------------


def test_robomimic_is_read_as_it_is(robomimic: Path) -> None:
    found = opened(robomimic)
    assert found.layout.name == "robomimic"
    assert names(found) == ["demo_1", "demo_2", "demo_10"]
    assert [e.length for e in found.episodes] == [12, 9, 14]
    assert found.sizes == {"agentview": (16, 24), "robot0_eye_in_hand": (16, 24)}
    keys = ("joint_pos", "eef_pos", "eef_quat", "gripper_qpos")
    assert [k.removeprefix("obs/robot0_") for k in found.state] == list(keys)
    assert found.state_names[6:9] == ("robot0_joint_pos_6", "robot0_eef_pos_x", "robot0_eef_pos_y")
    assert found.facts == {"env_name": "Lift", "env_version": "1.4.1", "robot_type": "Panda"}
    assert found.rate == 20
    with h5py.File(robomimic) as file:
        for episode in found.episodes:
            demo = file[f"data/{episode.name}"]
            state, action = found.vectors(episode)
            expected = np.concatenate([demo[f"obs/robot0_{k}"][()] for k in keys], axis=1)
            np.testing.assert_array_equal(state, expected.astype(np.float32))
            np.testing.assert_array_equal(action, demo["actions"][()].astype(np.float32))
            assert state.dtype == action.dtype == np.float32
            for camera in found.images:
                frames = np.stack(list(found.frames(episode, camera)))
                np.testing.assert_array_equal(frames, demo[f"obs/{camera}_image"][()])


def test_success_is_read_from_sparse_rewards(robomimic: Path, tmp_path: Path) -> None:
    solved = [e.success for e in opened(robomimic).episodes]
    assert all(s is not None and s.dtype == bool for s in solved)
    assert [np.flatnonzero(s).tolist() for s in solved if s is not None] == [[10, 11], [], [12, 13]]
    assert names(opened(robomimic, only_successful=True)) == ["demo_1", "demo_10"]

    shaped = copy.deepcopy(ENV_ARGS)
    shaped["env_kwargs"]["reward_shaping"] = True
    path = write_robomimic(tmp_path / "shaped.hdf5", env_args=shaped)
    assert [e.success for e in opened(path).episodes] == [None] * 3
    refused(path, DatasetError, "only_successful", "sparse rewards", only_successful=True)

    def dense(file: h5py.File) -> None:
        file["data/demo_1/rewards"][...] = 0.3

    path = write_robomimic(tmp_path / "dense.hdf5", change=dense)
    assert [e.success for e in opened(path).episodes] == [None] * 3


def test_masks_and_skipped_episodes(robomimic: Path) -> None:
    assert names(opened(robomimic, mask="train")) == ["demo_1", "demo_2"]
    assert names(opened(robomimic, mask="valid")) == ["demo_10"]
    assert names(opened(robomimic, skip=["demo_2"])) == ["demo_1", "demo_10"]
    refused(robomimic, DatasetError, "'trian'", "mean 'train'", "train, valid", mask="trian")
    refused(robomimic, DatasetError, "'demo_3'", "It has 4", skip=["demo_3"])
    refused(robomimic, EmptyError, "none is left", mask="valid", skip=["demo_10"])


def test_the_user_chooses_state_action_and_cameras(robomimic: Path) -> None:
    found = opened(
        robomimic,
        state=["object", "robot0_joint_pos"],
        action=["actions", "dones"],
        cameras=["robot0_eye_in_hand"],
    )
    state, action = found.vectors(found.episodes[0])
    assert state.shape == (12, 17)
    assert found.state_names[:2] == ("object_0", "object_1")
    assert found.meaning.names[-2:] == ("actions_6", "dones_0")
    assert found.meaning.kind == "unknown"
    np.testing.assert_array_equal(action[:, 7], np.arange(12) == 11)
    assert list(found.images) == ["robot0_eye_in_hand"]
    assert opened(robomimic, cameras=[]).images == {}
    typo = ["robot0_join_pos"]
    refused(robomimic, KeysError, "mean 'robot0_joint_pos'", "There are: object,", state=typo)
    refused(robomimic, KeysError, "'action'", "mean 'actions'", action=["action"])
    refused(robomimic, KeysError, "mean 'agentview'", cameras=["agentvew"])
    refused(robomimic, KeysError, "twice", cameras=["agentview", "agentview"])
    refused(robomimic, KeysError, "twice", state=["object", "object"])


@pytest.mark.parametrize(
    ("controller", "kind"),
    [
        (OSC_POSE, "delta"),
        (OSC_POSE | {"control_delta": False}, "unknown"),
        ([OSC_POSE, OSC_POSE | {"control_delta": False}], "unknown"),
        ({"type": "BASIC", "body_parts": {"right": OSC_POSE | {"input_type": "delta"}}}, "delta"),
        (
            {"type": "BASIC", "body_parts": {"right": OSC_POSE | {"input_type": "absolute"}}},
            "unknown",
        ),
        (
            {"type": "X", "body_parts": {"arms": {"left": OSC_POSE}, "base": {"type": "VELOCITY"}}},
            "delta",
        ),
        ({"type": "JOINT_VELOCITY"}, "unknown"),
        (None, "unknown"),
    ],
)
def test_what_actions_mean_stands_in_env_args(tmp_path: Path, controller: Any, kind: str) -> None:
    arguments = copy.deepcopy(ENV_ARGS)
    arguments["env_kwargs"]["controller_configs"] = controller
    path = write_robomimic(tmp_path / "demo.hdf5", env_args=arguments, cameras=())
    meaning = opened(path, cameras=[]).meaning
    assert meaning.kind == kind
    expected = "robot0_dx" if kind == "delta" else "actions_0"
    assert meaning.names[0] == expected
    assert len(meaning.names) == 7


def test_a_file_without_env_args_is_read_too(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5", env_args={})
    found = opened(path)
    assert (found.meaning.kind, found.facts, found.rate) == ("unknown", {}, None)


def test_libero_names_and_sentences(tmp_path: Path) -> None:
    """One file a task, other names of observations, the sentence in the file."""

    def libero(file: h5py.File) -> None:
        said = {"language_instruction": "open the drawer"}
        file["data"].attrs["problem_info"] = json.dumps(said)
        for demo in file["data"].values():
            obs = demo["obs"]
            obs["joint_states"] = obs["robot0_joint_pos"][()]
            obs["ee_pos"], obs["ee_ori"] = obs["robot0_eef_pos"][()], obs["robot0_eef_pos"][()]
            obs["gripper_states"] = obs["robot0_gripper_qpos"][()]
            obs.move("agentview_image", "agentview_rgb")
            for key in [k for k in obs if k.startswith("robot0") or k == "object"]:
                del obs[key]

    for task in ("a", "b"):
        write_robomimic(tmp_path / f"{task}_demo.hdf5", change=libero, lengths=(5, 6))
    found = opened(tmp_path)
    assert names(found) == ["a_demo/demo_0", "a_demo/demo_1", "b_demo/demo_0", "b_demo/demo_1"]
    keys = ["joint_states", "ee_pos", "ee_ori", "gripper_states"]
    assert [k.removeprefix("obs/") for k in found.state] == keys
    assert found.images == {"agentview": "obs/agentview_rgb"}
    assert {e.task for e in found.episodes} == {"open the drawer"}
    assert names(opened(tmp_path, skip=["a_demo"])) == ["b_demo/demo_0", "b_demo/demo_1"]


def test_pictures_with_channels_first_are_turned(robomimic: Path, tmp_path: Path) -> None:
    def turn(file: h5py.File) -> None:
        for demo in file["data"].values():
            pictures = demo["obs/agentview_image"][()]
            del demo["obs/agentview_image"]
            demo["obs/agentview_image"] = np.moveaxis(pictures, -1, 1)

    turned = opened(write_robomimic(tmp_path / "t.hdf5", change=turn), cameras=["agentview"])
    plain = opened(write_robomimic(tmp_path / "p.hdf5"), cameras=["agentview"])
    assert turned.sizes == plain.sizes
    for a, b in zip(turned.episodes, plain.episodes, strict=True):
        frames = zip(turned.frames(a, "agentview"), plain.frames(b, "agentview"), strict=True)
        assert all((x == y).all() for x, y in frames)


def test_aloha_is_read_as_it_is(aloha: Path) -> None:
    found = opened(aloha)
    assert found.layout.name == "aloha"
    assert names(found) == ["episode_1", "episode_2", "episode_10"]
    assert found.state_names == found.meaning.names == BIMANUAL
    assert BIMANUAL[0] == "left_waist"
    assert BIMANUAL[-1] == "right_gripper"
    assert found.meaning.kind == "absolute"
    assert found.facts == {"sim": True, "robot_type": "aloha"}
    for episode in found.episodes:
        with h5py.File(aloha / f"{episode.name}.hdf5") as file:
            state, action = found.vectors(episode)
            np.testing.assert_array_equal(state, file["observations/qpos"][()].astype(np.float32))
            np.testing.assert_array_equal(action, file["action"][()].astype(np.float32))
            for camera, key in found.images.items():
                frames = np.stack(list(found.frames(episode, camera)))
                np.testing.assert_array_equal(frames, file[key][()])
    with_speed = opened(aloha, state=["qpos", "qvel", "effort"]).state_names
    assert with_speed[14:15] == ("left_waist.vel",)
    assert with_speed[-1] == "right_gripper.effort"


def test_a_file_a_folder_and_a_pattern(aloha: Path) -> None:
    assert names(opened(aloha / "episode_2.hdf5")) == ["episode_2"]
    assert names(opened(f"{aloha}/episode_1*.hdf5")) == ["episode_1", "episode_10"]
    refused(aloha / "episode_3.hdf5", RootError, "no file", "Did you mean")
    refused(f"{aloha}/demo_*.hdf5", RootError, "no file")


def test_other_arms_have_numbered_joints(tmp_path: Path) -> None:
    found = opened(write_aloha(tmp_path, dimensions=8))
    assert found.state_names == found.meaning.names == tuple(f"joint_{i}" for i in range(8))
    assert found.meaning.kind == "unknown"  # training compares them with the state


def test_a_mobile_base_is_a_part_of_the_action(tmp_path: Path) -> None:
    def add(file: h5py.File) -> None:
        file["base_action"] = np.ones((len(file["action"]), 2))

    found = opened(write_aloha(tmp_path, change=add), action=["action", "base_action"])
    assert found.meaning.names == (*BIMANUAL, "base_linear", "base_angular")
    assert found.vectors(found.episodes[0])[1].shape == (12, 16)


def test_jpegs_come_out_as_opencv_gives_them(tmp_path: Path) -> None:
    """ALOHA's recorder compresses RGB as if it were BGR; decoding gives RGB back."""
    source = write_aloha(tmp_path, compress=True)
    found, swapped = opened(source), opened(source, jpeg_channels="bgr")
    for episode in found.episodes:
        with h5py.File(episode.path) as file:
            for camera, key in found.images.items():
                expected = np.stack([decoded(row) for row in file[key]])
                frames = np.stack(list(found.frames(episode, camera)))
                np.testing.assert_array_equal(frames, expected)
                other = np.stack(list(swapped.frames(episode, camera)))
                np.testing.assert_array_equal(other, expected[..., ::-1])
    refused(source, DatasetError, "jpeg_channels is 'RGB'", jpeg_channels="RGB")


def test_jpegs_may_also_be_rows_of_their_own_length(tmp_path: Path) -> None:
    def rewrite(file: h5py.File) -> None:
        group = file["observations/images"]
        encoded = [encode(frame) for frame in group["cam_high"][()]]
        del group["cam_high"], group["cam_left_wrist"]
        rows = group.create_dataset("rows", len(encoded), h5py.vlen_dtype(np.uint8))
        for i, row in enumerate(encoded):
            rows[i] = row
        group["strings"] = np.array([row.tobytes() for row in encoded])
        group["expected"] = np.stack([decoded(row) for row in encoded])

    found = opened(write_aloha(tmp_path, lengths=(5,), change=rewrite))
    frames = {c: np.stack(list(found.frames(found.episodes[0], c))) for c in found.images}
    assert frames.keys() == {"rows", "strings", "expected"}
    np.testing.assert_array_equal(frames["rows"], frames["expected"])
    np.testing.assert_array_equal(frames["strings"], frames["expected"])


# --- what cannot be imported ---------------------------------------------------------------------


def test_a_wrong_layout_shows_what_is_there_and_what_fits(
    robomimic: Path, aloha: Path, tmp_path: Path
) -> None:
    words = ["not in aloha's layout", "layout=robomimic fits", "demo_1/  (and 2 more like it)"]
    refused(robomimic, RootError, *words, "actions  float64 [12, 7]", layout="aloha")
    refused(aloha, RootError, "layout=aloha fits", "qpos  float64 [12, 14]", layout="robomimic")
    refused(aloha, DatasetError, "'robmimic'", "mean 'robomimic'", layout="robmimic")
    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as file:
        file["steps/observation"] = np.zeros((5, 3), np.float32)
        for i in range(100):
            file[f"extra/letter_{chr(97 + i % 26) * (1 + i // 26)}"] = 0
    refused(
        other, RootError, "no layout that is known", "observation  float32 [5, 3]", "and 85 more"
    )
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    refused(tmp_path / "empty.hdf5", RootError, "It holds:\n  nothing")


def test_what_is_no_hdf5_file(tmp_path: Path, robomimic: Path) -> None:
    (tmp_path / "text.hdf5").write_text("version https://git-lfs.github.com/spec/v1")
    refused(tmp_path / "text.hdf5", RootError, "no HDF5 file", "begins with b'version '")
    (tmp_path / "nothing.hdf5").touch()
    refused(tmp_path / "nothing.hdf5", RootError, "it is empty")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", RootError, "holds no HDF5 files", "it holds nothing")
    refused(robomimic.parent.parent, RootError, "There are some in")
    refused(tmp_path / "tex.hdf5", RootError, "mean 'text.hdf5'")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_short(robomimic: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "demo.hdf5"
    content = robomimic.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, BrokenError, str(path), "is cut short", f"{path.stat().st_size:,} bytes")


def test_a_damaged_file(robomimic: Path, tmp_path: Path) -> None:
    """Whatever a stretch of zeros hits: an error of ours, or the values that were there."""
    content, told = robomimic.read_bytes(), []
    for start in range(200, len(content), len(content) // 40):
        path = tmp_path / "demo.hdf5"
        path.write_bytes(content[:start] + bytes(400) + content[start + 400 :])
        try:
            found = opened(path)
            for episode in found.episodes:
                found.vectors(episode)
                for camera in found.images:
                    list(found.frames(episode, camera))
        except DatasetError as error:
            told.append(str(error))
    assert 5 < len(told) < 40
    assert all(str(path) in text or "demo_" in text for text in told)


def test_one_file_of_many_that_is_cut_short(tmp_path: Path) -> None:
    source = write_aloha(tmp_path / "some")
    for number in (0, 2):
        path = source / f"episode_{number}.hdf5"
        content = path.read_bytes()
        os.truncate(path, len(content) // 2)
        refused(source, BrokenError, "is cut short", f"skip=[episode_{number}]")
        assert len(opened(source, skip=[f"episode_{number}"]).episodes) == 2
        path.write_bytes(content)


def test_a_file_of_another_layout_among_many(aloha: Path, robomimic: Path, tmp_path: Path) -> None:
    for path in (*aloha.iterdir(), robomimic):
        (tmp_path / path.name).symlink_to(path)
    refused(tmp_path, BrokenError, "is not in robomimic's layout", "skip=[episode_1,")
    assert len(opened(tmp_path, skip=["demo"]).episodes) == 3


def shorten(key: str) -> Change:
    def change(file: h5py.File) -> None:
        values = file[key][()]
        del file[key]
        file[key] = values[:-2]

    return change


def put(key: str, place: tuple[int, int], value: float) -> Change:
    def change(file: h5py.File) -> None:
        file[key][place] = value

    return change


def replace(key: str, value: Callable[[np.ndarray], np.ndarray] | None) -> Change:
    def change(file: h5py.File) -> None:
        values = file[key][()]
        del file[key]
        if value is not None:
            file[key] = value(values)

    return change


JOINTS, PICTURES = "data/demo_1/obs/robot0_joint_pos", "data/demo_1/obs/agentview_image"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shorten("data/demo_1/actions"), ["different lengths", "actions 7", "joint_pos 9"]),
        (shorten(PICTURES), ["different lengths", "obs/agentview_image 7"]),
        (put(JOINTS, (3, 2), np.nan), ["joint_pos is nan in frame 3, dimension 2; 1 such"]),
        (put("data/demo_1/actions", (4, 6), np.inf), ["actions is inf in frame 4, dimension 6"]),
        (put("data/demo_1/actions", (4, 6), 1e300), ["actions is inf in frame 4"]),  # in float32
        (replace(JOINTS, None), ["lacks obs/robot0_joint_pos"]),
        (replace(PICTURES, None), ["lacks obs/agentview_image"]),
        (replace(JOINTS, lambda v: v[:, :6]), ["float64 [9, 6], elsewhere 7 numbers a frame"]),
        (replace(JOINTS, lambda v: v.astype("S8")), ["elsewhere 7 numbers"]),
        (replace(PICTURES, lambda v: v[:, :8]), ["has 8x24 pixels, elsewhere 16x24"]),
        (replace(PICTURES, lambda v: v / 255.0), ["float64 [9, 16, 24, 3]", "uint8"]),
    ],
)
def test_broken_episodes_are_named_and_may_be_left_out(
    tmp_path: Path, change: Change, words: list[str]
) -> None:
    path = write_robomimic(tmp_path / "demo.hdf5", change=change)
    refused(path, BrokenError, "1 of 3 episodes", "demo_1: ", *words, "skip=[demo_1]")
    assert names(opened(path, skip=["demo_1"])) == ["demo_0", "demo_2"]


def test_an_attribute_that_contradicts_the_data(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["data/demo_2"].attrs["num_samples"] = 99

    path = write_robomimic(tmp_path / "demo.hdf5", change=change)
    refused(path, BrokenError, "num_samples 99", "actions 14")


def test_empty_episodes(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "some.hdf5", lengths=(0, 5, 0))
    refused(path, BrokenError, "2 of 3", "demo_0: it is empty", "skip=[demo_0,demo_2]")
    assert names(opened(path, skip=["demo_0", "demo_2"])) == ["demo_1"]
    refused(write_robomimic(tmp_path / "all.hdf5", lengths=(0, 0)), EmptyError, "has a frame")


def test_no_pictures(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "low_dim.hdf5", cameras=())
    refused(path, KeysError, "holds no pictures", "dataset_states_to_obs.py", "cameras=[]")
    refused(write_aloha(tmp_path / "aloha", cameras=()), KeysError, "cameras=[]")


def test_no_observations(tmp_path: Path) -> None:
    def drop(file: h5py.File) -> None:
        for demo in file["data"].values():
            del demo["obs"]

    path = write_robomimic(tmp_path / "demo.hdf5", change=drop)
    refused(path, KeysError, "no observations", "dataset_states_to_obs.py", "states  float64")


def test_a_state_under_unknown_names(tmp_path: Path) -> None:
    def rename(file: h5py.File) -> None:
        for demo in file["data"].values():
            for key in [k for k in demo["obs"] if k.startswith("robot0_") and "image" not in k]:
                demo["obs"].move(key, key.replace("robot0", "pose"))
            del demo["obs/pose_joint_pos"], demo["obs/pose_eef_pos"], demo["obs/pose_eef_quat"]
            del demo["obs/pose_gripper_qpos"]

    path = write_robomimic(tmp_path / "demo.hdf5", change=rename)
    refused(path, KeysError, "say state=[NAME,...]", "object, pose_joint_pos_cos")
    assert len(opened(path, state=["pose_joint_vel"]).state_names) == 7


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda v: (v / 255).astype(np.float32), ["float32 [12, 16, 24, 3]", "brightness of 1"]),
        (lambda v: v[..., 0], ["uint8 [12, 16, 24]", "[T, H, W, 3]"]),
        (lambda v: v[..., :1], ["three channels"]),
    ],
)
def test_what_is_no_colour_picture(
    tmp_path: Path, value: Callable[[np.ndarray], np.ndarray], words: list[str]
) -> None:
    change = replace("data/demo_0/obs/agentview_image", value)
    path = write_robomimic(tmp_path / "demo.hdf5", lengths=(12,), change=change)
    refused(path, KeysError, *words, "cameras=[robot0_eye_in_hand]")
    assert list(opened(path, cameras=["robot0_eye_in_hand"]).images) == ["robot0_eye_in_hand"]


def test_a_jpeg_that_cannot_be_decoded(tmp_path: Path) -> None:
    source = write_aloha(tmp_path, compress=True)
    for number, spoil in ((4, slice(0, None)), (6, slice(300, None))):
        with h5py.File(source / "episode_1.hdf5", "r+") as file:
            file["observations/images/cam_high"][number, spoil] = 0
    found = opened(source)
    frames = found.frames(found.episodes[1], "cam_high")
    for _ in range(4):
        next(frames)
    with pytest.raises(BrokenError, match=r"frame 4 cannot be decoded .*skip=\[episode_1\]"):
        next(frames)


def test_pictures_of_another_size_among_jpegs(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        dataset = file["observations/images/cam_high"]
        small = encode(np.zeros((8, 8, 3), np.uint8))
        dataset[3, :] = 0
        dataset[3, : min(len(small), dataset.shape[1])] = small[: dataset.shape[1]]

    found = opened(write_aloha(tmp_path, compress=True, lengths=(6,), change=change))
    with pytest.raises(BrokenError, match="frame 3 has 8x8 pixels, .* 16x24.* skip=.episode_0"):
        list(found.frames(found.episodes[0], "cam_high"))
