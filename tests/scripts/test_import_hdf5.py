"""Importing HDF5: the dataset holds what the files held, and no interruption changes that."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from scripts.import_hdf5 import ImportConfig, import_hdf5, run, summary
from tests.hdf5_files import ENV_ARGS, OSC_POSE, write_aloha, write_robomimic
from tests.test_configs import compose
from worldmodel.data import DataConfig, DatasetError, open_data
from worldmodel.data.errors import BrokenError, RootError, RootsDisagreeError
from worldmodel.data.hdf5 import Choice, open_demonstrations

LENGTHS = (12, 9, 14)


@pytest.fixture(scope="module")
def robomimic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("robomimic") / "demo.hdf5"
    return write_robomimic(path, lengths=LENGTHS, numbers=(1, 2, 10), solved=(True, False, True))


@pytest.fixture(scope="module")
def aloha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aloha(tmp_path_factory.mktemp("aloha") / "jpegs", lengths=LENGTHS, compress=True)


def configure(source: Path | str, out: Path, **changes: Any) -> ImportConfig:
    values = {"fps": 20, "task": "lift the cube", "out": str(out), **changes}
    return ImportConfig(source=str(source), **values)


def spec_of(root: Path, **options: Any) -> Any:
    config = DataConfig(str(root), image_size=16, cache_dir=str(root.parent / "cache"), **options)
    return open_data(config, progress=False).spec


def content(root: Path) -> dict[str, Any]:
    """Of a dataset, but for statistics, which differ in the last bits with the commits."""
    committed = json.loads((root / "meta/info.json").read_text())["total_episodes"]
    rows = pq.read_table(root / "meta/episodes").sort_by("episode_index").to_pylist()[:committed]
    found: dict[str, Any] = {"names": [(r["name"], r["tasks"], r.get("success")) for r in rows]}
    info = json.loads((root / "meta/info.json").read_text())
    table = pq.read_table(root / "data", filters=[("episode_index", "<", committed)])
    table = table.sort_by("index")
    assert len(table) == info["total_frames"]
    found |= {name: table[name].to_pylist() for name in table.column_names}
    return found | {key: frames.tolist() for key, frames in pictures(root).items()}


def pictures(root: Path) -> dict[str, np.ndarray]:
    """Camera key -> all frames, uint8 ``[N, H, W, 3]``."""
    from worldmodel.data.source import open_source
    from worldmodel.data.video import decode

    source = open_source(str(root))
    keys = [key for key, feature in source.features.items() if feature["dtype"] == "video"]
    return {
        key: np.stack([frame for _, frame in sorted(decode(source, key), key=lambda x: x[0])])
        for key in keys
    }


@pytest.mark.parametrize("layout", ["robomimic", "aloha"])
def test_lerobot_and_we_read_what_was_in_the_files(
    request: pytest.FixtureRequest, tmp_path: Path, layout: str
) -> None:
    """States and actions bit for bit (as float32), pictures without loss, in the right order."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    source = request.getfixturevalue(layout)
    result = import_hdf5(configure(source, tmp_path / "data", layout=layout, commit_every=2))
    assert (result.episodes, result.frames, result.imported) == (3, sum(LENGTHS), 3)
    found = open_demonstrations(str(source), Choice())
    data = LeRobotDataset("local/test", root=tmp_path / "data", video_backend="pyav")
    assert data.meta.total_episodes == 3
    ours = open_data(
        DataConfig(str(tmp_path / "data"), image_size=[16, 24], future=0, past=1, validation=0),
        progress=False,
    )
    assert ours.spec.cameras == tuple(found.images)
    assert ours.spec.state_names == found.state_names
    assert ours.spec.action_names == found.meaning.names
    assert ours.spec.tasks == ("lift the cube",)
    batch = ours.train.batch(np.arange(sum(LENGTHS)))
    row = 0
    for episode in found.episodes:
        state, action = found.vectors(episode)
        frames = {c: np.stack(list(found.frames(episode, c))) for c in found.images}
        rows = slice(row, row + episode.length)
        np.testing.assert_array_equal(batch.state[rows, 0], state)
        np.testing.assert_array_equal(batch.action[rows, 0], action)
        for camera, expected in frames.items():
            seen = batch.video[camera][rows, 0].permute(0, 2, 3, 1)
            np.testing.assert_array_equal(seen, expected)
        for t in (0, episode.length - 1):
            item = data[row + t]
            np.testing.assert_array_equal(item["observation.state"], state[t])
            np.testing.assert_array_equal(item["action"], action[t])
            assert item["task"] == "lift the cube"
            assert item["timestamp"] == pytest.approx(t / 20)
            for camera, expected in frames.items():
                image = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy() * 255
                np.testing.assert_array_equal(image.round(), expected[t])
            if episode.success is not None:
                assert item["next.success"] == episode.success[t]
        row += episode.length
    assert ("next.success" in data.features) == (layout == "robomimic")


def test_success_task_and_origin_are_kept(robomimic: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    result = import_hdf5(configure(robomimic, out))
    rows = pq.read_table(out / "meta/episodes").to_pylist()
    assert [(r["name"], r["success"]) for r in rows] == [
        ("demo_1", True),
        ("demo_2", False),
        ("demo_10", True),
    ]
    source = json.loads((out / "meta/source.json").read_text())
    assert source["facts"]["env_name"] == "Lift"
    assert source["files"] == ["demo.hdf5"]
    assert str(robomimic.parent) not in json.dumps(source)
    lines = "\n".join(summary(configure(robomimic, out, fps=30), result))
    assert "3 of 3 episodes, 35 frames" in lines
    assert "success  2 of 3 episodes" in lines
    assert "delta (env_args: controller OSC_POSE takes changes)" in lines
    assert "left out dones, next_obs/, obs/object" in lines
    assert "the files say 20 actions a second, fps=30" in lines
    picked = import_hdf5(configure(robomimic, tmp_path / "good", only_successful=True))
    assert picked.episodes == 2


def test_a_task_per_episode_where_the_files_tell(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def tell(file: h5py.File) -> None:
        for i, demo in enumerate(file["data"].values()):
            demo.attrs["ep_meta"] = json.dumps({"lang": f"open drawer {i % 2}"})

    path = write_robomimic(tmp_path / "demo.hdf5", change=tell)
    out = tmp_path / "data"
    import_hdf5(configure(path, out, task=None, commit_every=1))
    assert spec_of(out).tasks == ("open drawer 0", "open drawer 1")
    data = LeRobotDataset("local/test", root=out, video_backend="pyav")
    assert [data[i]["task"][-1] for i in (0, 12, 21)] == ["0", "1", "0"]
    assert data.meta.total_tasks == 2
    mute = write_robomimic(tmp_path / "mute.hdf5")
    with pytest.raises(DatasetError, match='demo_0 is about; say task="..."'):
        import_hdf5(configure(mute, tmp_path / "other", task=None))
    assert not (tmp_path / "other").exists()


def test_training_knows_what_the_actions_mean(robomimic: Path, aloha: Path, tmp_path: Path) -> None:
    import_hdf5(configure(robomimic, tmp_path / "delta"))
    assert spec_of(tmp_path / "delta").action_kind == "delta"
    assert spec_of(tmp_path / "delta", action_kind="unknown").action_kind == "unknown"
    import_hdf5(configure(aloha, tmp_path / "absolute"))
    spec = spec_of(tmp_path / "absolute")
    assert (spec.action_kind, spec.robot_type) == ("absolute", "aloha")

    other = json.loads(json.dumps(ENV_ARGS))
    other["env_kwargs"]["controller_configs"] = OSC_POSE | {"control_delta": False}
    path = write_robomimic(tmp_path / "demo.hdf5", env_args=other, seed=1)
    import_hdf5(configure(path, tmp_path / "unknown"))
    assert spec_of(tmp_path / "unknown").action_kind == "unknown"


def test_roots_that_mean_different_things_are_not_mixed(robomimic: Path, tmp_path: Path) -> None:
    import_hdf5(configure(robomimic, tmp_path / "a"))
    other = write_robomimic(tmp_path / "demo.hdf5", seed=1)
    import_hdf5(configure(other, tmp_path / "b"))
    roots = [str(tmp_path / "a"), str(tmp_path / "b")]
    config = DataConfig(roots, image_size=16, cache_dir=str(tmp_path / "cache"))
    assert open_data(config, progress=False).spec.action_kind == "delta"
    info = tmp_path / "b/meta/info.json"
    info.write_text(info.read_text().replace('"delta"', '"absolute"'))
    with pytest.raises(RootsDisagreeError, match="action_kind is 'absolute', expected 'delta'"):
        open_data(config, progress=False)
    config.action_kind = "delta"
    assert open_data(config, progress=False).spec.action_kind == "delta"


def test_a_training_run_takes_an_import(root: Path, robomimic: Path, tmp_path: Path) -> None:
    from scripts.train import train

    import_hdf5(configure(robomimic, tmp_path / "data"))
    overrides = [
        "experiment=debug",
        f"data.root={tmp_path / 'data'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"out={tmp_path / 'run'}",
        "steps=2",
    ]
    config: Any = OmegaConf.to_object(compose("train", *overrides))
    assert train(config, Console(quiet=True)).steps == 2
    stamp = json.loads((tmp_path / "run/checkpoints/last/stamp.json").read_text())
    assert stamp["actions"]["kind"] == "delta"
    assert "environment" not in stamp  # none of ours, that scripts.evaluate could rebuild


def test_cameras_of_different_sizes_and_none(tmp_path: Path) -> None:
    def shrink(file: h5py.File) -> None:
        for demo in file["data"].values():
            small = demo["obs/agentview_image"][:, ::2, ::2]
            del demo["obs/agentview_image"]
            demo["obs/agentview_image"] = small

    path = write_robomimic(tmp_path / "demo.hdf5", change=shrink)
    import_hdf5(configure(path, tmp_path / "data"))
    shapes = {key: frames.shape for key, frames in pictures(tmp_path / "data").items()}
    assert shapes["observation.images.agentview"] == (35, 8, 12, 3)
    assert shapes["observation.images.robot0_eye_in_hand"] == (35, 16, 24, 3)
    import_hdf5(configure(path, tmp_path / "blind", cameras=[]))
    assert spec_of(tmp_path / "blind").cameras == ()
    assert not (tmp_path / "blind/videos").exists()


def test_lossy_video_is_close(aloha: Path, tmp_path: Path) -> None:
    import_hdf5(configure(aloha, tmp_path / "exact"))
    import_hdf5(configure(aloha, tmp_path / "lossy", crf=18))
    exact, lossy = pictures(tmp_path / "exact"), pictures(tmp_path / "lossy")
    for key, frames in exact.items():
        difference = np.abs(frames.astype(int) - lossy[key])
        assert 0 < difference.mean() < 4


# --- interrupted ---------------------------------------------------------------------------------


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("frames", [1, 30, 45, 69])
def test_killed_and_resumed_equals_uninterrupted(
    robomimic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    """Wherever it stops without another word, what was committed is whole and is gone on from."""
    from envs.dataset import DatasetWriter

    import_hdf5(configure(robomimic, tmp_path / "whole", commit_every=1))
    whole = content(tmp_path / "whole")
    out = tmp_path / "data"

    def stop(what: str, done: int, total: int) -> None:
        if what == "frames" and done == frames:
            # From here on nothing is written any more.
            monkeypatch.setattr(DatasetWriter, "commit", lambda self: None)
            raise _KilledError

    with pytest.raises(_KilledError):
        import_hdf5(configure(robomimic, out, commit_every=1), stop)
    monkeypatch.undo()
    kept = sum(frames > 2 * end for end in np.cumsum(LENGTHS))
    if kept:
        assert content(out)["names"] == whole["names"][:kept]
    seen: list[int] = []
    result = import_hdf5(
        configure(robomimic, out, commit_every=1),
        lambda what, done, total: seen.append(done) if what == "frames" else None,
    )
    assert result.imported == 3 - kept
    assert (seen[0], seen[-1]) == (2 * sum(LENGTHS[:kept]), 2 * sum(LENGTHS))
    assert content(out) == whole
    assert not list(out.rglob("*.part"))
    assert import_hdf5(configure(robomimic, out)).imported == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_stops_it_and_the_same_command_goes_on(
    root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As a program: Ctrl-C keeps every finished episode, SIGKILL those committed."""
    source = write_robomimic(tmp_path / "demo.hdf5", lengths=[60] * 40)
    out = tmp_path / "data"
    command = [sys.executable, "-m", "scripts.import_hdf5", f"source={source}", f"out={out}"]
    command += ["fps=20", "task='lift, gently'", "commit_every=2"]
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 90
    while not (out / "meta/info.json").is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output
    if number == signal.SIGINT:
        assert process.returncode == 130, output
        assert "the same command goes on" in " ".join(output.split())
    done = json.loads((out / "meta/info.json").read_text())["total_episodes"]
    assert 2 <= done < 40
    assert [name for name, *_ in content(out)["names"]] == [f"demo_{i}" for i in range(done)]
    result = import_hdf5(configure(source, out, task="lift, gently", commit_every=2))
    assert (result.episodes, result.imported) == (40, 40 - done)


def test_a_full_disk_costs_only_the_last_commit(
    robomimic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import envs.dataset

    written = 0
    real = envs.dataset._Encoder.write

    def write(self: Any, frames: np.ndarray) -> None:
        nonlocal written
        written += 1
        if written > 2:  # the first camera of the second episode
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, frames)

    out = tmp_path / "data"
    with monkeypatch.context() as patched:
        patched.setattr(envs.dataset._Encoder, "write", write)
        with pytest.raises(OSError, match="No space left"):
            import_hdf5(configure(robomimic, out, commit_every=1))
    assert [name for name, *_ in content(out)["names"]] == ["demo_1"]
    assert import_hdf5(configure(robomimic, out, commit_every=1)).imported == 2


def test_a_picture_that_cannot_be_decoded_is_skipped_without_starting_again(
    tmp_path: Path,
) -> None:
    source = write_aloha(tmp_path / "files", compress=True)
    with h5py.File(source / "episode_1.hdf5", "r+") as file:
        file["observations/images/cam_left_wrist"][5] = 0
    out = tmp_path / "data"
    with pytest.raises(BrokenError, match=r"frame 5 cannot be decoded.*skip=\[episode_1\]"):
        import_hdf5(configure(source, out))
    assert [name for name, *_ in content(out)["names"]] == ["episode_0"]
    assert import_hdf5(configure(source, out, skip=["episode_1"])).imported == 1
    import_hdf5(configure(source, tmp_path / "whole", skip=["episode_1"]))
    assert content(out) == content(tmp_path / "whole")


def test_the_first_episodes_now_and_the_rest_later(robomimic: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert import_hdf5(configure(robomimic, out, episodes=1)).episodes == 1
    assert import_hdf5(configure(robomimic, out)).imported == 2
    import_hdf5(configure(robomimic, tmp_path / "whole"))
    assert content(out) == content(tmp_path / "whole")


# --- refused -------------------------------------------------------------------------------------


def test_an_import_goes_on_only_as_what_it_was(
    robomimic: Path, aloha: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    import_hdf5(configure(robomimic, out, episodes=2))
    others = {"fps": 30, "task": "other", "cameras": [], "state": ["object"], "crf": 9}
    for name, value in others.items():
        with pytest.raises(ValueError, match=f"begun with {name}="):
            import_hdf5(configure(robomimic, out, **{name: value}))
    with pytest.raises(ValueError, match="holds 2 episodes, and number 1 is demo_2, where demo_10"):
        import_hdf5(configure(robomimic, out, skip=["demo_2"]))
    with pytest.raises(ValueError, match="number 1 is demo_2, where nothing more is wanted"):
        import_hdf5(configure(robomimic, out, episodes=1))
    with pytest.raises(ValueError, match="begun with"):
        import_hdf5(configure(aloha, out))
    assert import_hdf5(configure(robomimic, out)).imported == 1


def test_what_is_there_stays(robomimic: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="choose another out="):
            import_hdf5(configure(robomimic, out))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    import_hdf5(configure(robomimic, tmp_path / "data"))
    with pytest.raises(RootError, match="is a LeRobot dataset already: data.root="):
        import_hdf5(configure(tmp_path / "data", tmp_path / "again"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"commit_every": 0}, "commit_every is 0"),
        ({"episodes": 0}, "episodes is 0"),
        ({"crf": 60}, "0 .lossless. to 51"),
        ({"layout": "aloha"}, "layout=robomimic fits"),
        ({"cameras": ["wrist"]}, "agentview"),
    ],
)
def test_wrong_values_are_explained_before_anything_is_written(
    robomimic: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        import_hdf5(configure(robomimic, tmp_path / "data", **changes))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "source is missing"),
        (["source=x"], "out is missing"),
        (["source=x", "out=y"], "fps is missing: .* ALOHA at 50"),
        (["source=no/such.hdf5", "out=y", "fps=20"], "there is no file no/such.hdf5"),
    ],
)
def test_what_is_missing_is_asked_for(given: list[str], words: str, tmp_path: Path) -> None:
    values = compose("import_hdf5", *given)
    with pytest.raises(SystemExit, match=words):
        run.__wrapped__(values)


def test_training_on_hdf5_names_the_import(robomimic: Path) -> None:
    for given in (robomimic, robomimic.parent):
        with pytest.raises(RootError) as caught:
            open_data(DataConfig(str(given)), progress=False)
        assert f"python -m scripts.import_hdf5 source={given} fps=RATE out=DIR" in str(caught.value)


def test_the_configuration_composes_into_the_dataclass() -> None:
    config = OmegaConf.to_object(compose("import_hdf5", "source=a/*.hdf5", "out=b", "fps=20"))
    assert config == ImportConfig(source="a/*.hdf5", out="b", fps=20)
