"""Finding features and naming their dimensions."""

import pytest

from worldmodel.data.config import KeysConfig
from worldmodel.data.errors import KeysError
from worldmodel.data.keys import camera_name, dimension_names, resolve_keys

VECTOR = {"dtype": "float32", "shape": [7], "names": None}
VIDEO = {"dtype": "video", "shape": [96, 96, 3], "names": ["height", "width", "channels"]}
DEPTH = VIDEO | {"info": {"video.is_depth_map": True}}
INDEX = {"dtype": "int64", "shape": [1], "names": None}


def resolve(features, **wanted):
    return resolve_keys(features | {"frame_index": INDEX}, KeysConfig(**wanted), "data/set")


def test_standard_names_come_first() -> None:
    keys = resolve(
        {
            "state": VECTOR,
            "actions": VECTOR,
            "segmentation": VIDEO,
            "observation.images.wrist": VIDEO,
            "observation.image": VIDEO,
            "observation.images.depth": DEPTH,
            "observation.state": VECTOR,
            "action": VECTOR,
            "next.success": {"dtype": "bool", "shape": [1]},
        }
    )
    assert (keys.action, keys.state) == ("action", "observation.state")
    assert keys.images == {"wrist": "observation.images.wrist", "image": "observation.image"}


def test_other_names_are_found() -> None:
    keys = resolve({"actions": VECTOR, "state": VECTOR, "image": VIDEO, "wrist_image": VIDEO})
    assert (keys.action, keys.state) == ("actions", "state")
    assert keys.images == {"image": "image", "wrist_image": "wrist_image"}


def test_no_camera() -> None:
    assert resolve({"action": VECTOR, "observation.state": VECTOR}).images == {}
    features = {"action": VECTOR, "observation.state": VECTOR, "observation.image": VIDEO}
    assert resolve(features, images=[]).images == {}


def test_the_users_order_of_cameras_is_kept() -> None:
    features = {"action": VECTOR, "state": VECTOR, "a": VIDEO, "b": VIDEO, "c": VIDEO}
    assert list(resolve(features, images=["c", "a"]).images) == ["c", "a"]


@pytest.mark.parametrize(
    ("features", "wanted", "words"),
    [
        (
            {"state": VECTOR, "torque": VECTOR},
            {},
            ["the action", "data.keys.action=NAME", "torque", "[7]"],
        ),
        ({"action": VECTOR, "state": VECTOR, "qpos": VECTOR}, {}, ["Several", "state, qpos"]),
        (
            {"action": VECTOR, "state": VECTOR},
            {"action": "acton"},
            ["no feature 'acton'", "Did you mean 'action'"],
        ),
        ({"action": VECTOR, "state": VECTOR}, {"images": ["front"]}, ["no feature 'front'"]),
        (
            {"action": VECTOR, "state": VECTOR},
            {"images": ["state"]},
            ["'state'", "not a colour image"],
        ),
        ({"action": VECTOR, "state": VECTOR, "d": DEPTH}, {"images": ["d"]}, ["a depth map"]),
        ({"action": VECTOR, "state": VECTOR, "v": VIDEO}, {"images": ["v", "v"]}, ["twice"]),
        (
            {"action": VECTOR, "state": VECTOR, "v": VIDEO},
            {"state": "v"},
            ["video", "not a vector"],
        ),
    ],
)
def test_what_cannot_be_found_lists_what_is_there(features, wanted, words) -> None:
    with pytest.raises(KeysError) as caught:
        resolve(features, **wanted)
    for word in [*words, *([] if "twice" in words else ["Its features:"])]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ("a", "b")),
        ([["a", "b"]], ("a", "b")),
        ([["a"], ["b"]], ("a", "b")),
        ({"motors": ["a", "b"]}, ("a", "b")),
        ({"axes": {"y": 1, "x": 0}}, ("x", "y")),
        ({"b": 0, "a": 1}, ("b", "a")),
        ({"left": ["j"], "right": ["j"]}, ("left.j", "right.j")),
        ({"arm": {"left": ["j"], "right": ["j"]}}, ("arm.left.j", "arm.right.j")),
        (None, ("state_0", "state_1")),
        (["a"], ("state_0", "state_1")),
        (["a", "a"], ("state_0", "state_1")),
        ([], ("state_0", "state_1")),
    ],
)
def test_dimension_names(names, expected) -> None:
    assert dimension_names({"shape": [2], "names": names}, "state") == expected


def test_camera_names() -> None:
    assert camera_name("observation.images.front") == "front"
    assert camera_name("observation.images.arm.wrist") == "arm.wrist"
    assert camera_name("observation.image") == "image"
    assert camera_name("wrist_image") == "wrist_image"
