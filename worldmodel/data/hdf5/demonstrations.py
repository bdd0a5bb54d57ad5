"""Episodes of HDF5 files: found, checked as a whole before anything is done with them, then read.

What is small (states, actions, rewards) is read and checked at once; of pictures only shapes are
looked at, and they are read a few frames at a time.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import BrokenError, DatasetError, EmptyError, KeysError, RootError, did_you_mean
from ..locate import read_info
from .aloha import Aloha
from .file import listing, natural, open_file, reading
from .layout import Actions, Layout
from .robomimic import Robomimic

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (Robomimic(), Aloha())}
AUTO = "auto"
CHANNELS = ("rgb", "bgr")
EDGE = 1 << 20  # bytes at either end of a file that enter the fingerprint
BLOCK_BYTES = 32 << 20  # pictures in memory at once
NAMED = 8  # problems that an error lists

Progress = Callable[[int, int], None]


@dataclass
class Choice:
    """What the user may choose; None lets the layout do so.

    Attributes:
        layout: a name of `LAYOUTS`, or "auto" to recognise it.
        state: observations that make up the state, in order.
        action: datasets that make up the action, in order.
        cameras: names of cameras in order; ``[]`` for none.
        mask: take only the episodes of this mask.
        skip: names of episodes, or of files without ``.hdf5``, to leave out.
        only_successful: leave out episodes in which the task is never solved.
        jpeg_channels: order of colours in the arrays that `cv2.imencode` was given.
    """

    layout: str = AUTO
    state: list[str] | None = None
    action: list[str] | None = None
    cameras: list[str] | None = None
    mask: str | None = None
    skip: list[str] = field(default_factory=list)
    only_successful: bool = False
    jpeg_channels: str = "rgb"


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One episode.

    Attributes:
        name: of its group or file.
        path, group: where it is.
        length: frames.
        task: the task as a sentence, "" where the file does not say.
        success: bool ``[T]``, whether the world after each action counts as solved; None: unknown.
    """

    name: str
    path: Path
    group: str
    length: int
    task: str
    success: np.ndarray | None


@dataclass(frozen=True)
class Demonstrations:
    """Episodes that were found to be whole and alike.

    Attributes:
        layout: the files'.
        files: all that were found, in order.
        episodes: those chosen, in order.
        total: how many there are in all files that are not left out.
        state, action: datasets that make them up, relative to an episode's group, and their
            numbers a frame.
        images: camera -> dataset, relative to an episode's group.
        sizes: camera -> ``(H, W)`` in pixels.
        state_names: one per dimension.
        meaning: what the actions mean.
        rate: actions per second, where the files say.
        facts: what else the files say, JSON-ready.
        unused: datasets of an episode that are not taken over.
        jpeg_channels: see `Choice`.
    """

    layout: Layout
    files: tuple[Path, ...]
    episodes: tuple[Demonstration, ...]
    total: int
    state: dict[str, int]
    action: dict[str, int]
    images: dict[str, str]
    sizes: dict[str, tuple[int, int]]
    state_names: tuple[str, ...]
    meaning: Actions
    rate: float | None
    facts: dict[str, Any]
    unused: tuple[str, ...]
    jpeg_channels: str

    def vectors(self, episode: Demonstration) -> tuple[np.ndarray, np.ndarray]:
        """State and action of an episode, float32 ``[T, S]`` and ``[T, A]``.

        Raises:
            BrokenError: they cannot be read.
        """
        with open_file(episode.path) as file:
            group = file[episode.group]
            with reading(episode.path, episode.name):
                return _stack(group, list(self.state)), _stack(group, list(self.action))

    def frames(self, episode: Demonstration, camera: str) -> Iterator[np.ndarray]:
        """The pictures of an episode, uint8 ``[H, W, 3]`` each, read a few at a time.

        Raises:
            BrokenError: one cannot be read or decoded, or has another size.
        """
        key, size = self.images[camera], self.sizes[camera]
        with open_file(episode.path) as file:
            dataset = file[episode.group][key]
            where = f"{episode.name}, {key}"
            rows = max(1, BLOCK_BYTES // max(1, int(np.prod(size)) * 3))
            for start in range(0, episode.length, rows):
                with reading(episode.path, f"{where}, from frame {start} on"):
                    block = dataset[start : start + rows]
                for number, row in enumerate(block, start=start):
                    place = f"{where}, frame {number}"
                    frame = _picture(row, dataset, self.jpeg_channels, place, _leave_out(episode))
                    if frame.shape[:2] != size:
                        raise BrokenError(
                            f"{episode.path}: {place} has {_pixels(frame.shape)} "
                            f"pixels, the first frame of all {_pixels(size)}. {_leave_out(episode)}"
                        )
                    yield frame


def find_files(source: str) -> tuple[Path, ...]:
    """The HDF5 files that a file, a folder or a pattern with ``*`` names, ordered by numbers.

    Raises:
        RootError: there are none; says what is there instead.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return (path,)
    if path.is_dir():
        if (path / "meta" / "info.json").is_file():
            read_info(path)  # refuses other versions than v3, with the command that converts them
            raise RootError(
                f"{source} is a LeRobot dataset already: data.root={source} trains on it"
            )
        found = [p for p in path.iterdir() if p.suffix in (".hdf5", ".h5") and p.is_file()]
        if not found:
            deeper = sorted({str(p.parent) for p in path.rglob("*.hdf5")})
            there = sorted(p.name for p in path.iterdir())
            message = f"{source} holds no HDF5 files (*.hdf5, *.h5); it holds "
            message += ", ".join(there[:8]) + ", ..." * (len(there) > 8) if there else "nothing"
            raise RootError(message + (f". There are some in {deeper[0]}" if deeper else ""))
    else:
        found = [Path(p) for p in glob.glob(str(path)) if Path(p).is_file()]
        if not found:
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise RootError(f"there is no file {source}.{did_you_mean(path.name, near)}")
    return tuple(sorted(found, key=lambda p: natural(str(p))))


def fingerprint(files: Sequence[Path]) -> str:
    """Of names and content: sizes, and a megabyte at either end of each."""
    content = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        content.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            content.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            content.update(file.read(EDGE))
    return content.hexdigest()[:16]


def open_demonstrations(
    source: str, choice: Choice, progress: Progress | None = None
) -> Demonstrations:
    """Find the episodes and check every one of them.

    Args:
        source: a file, a folder of files, or a pattern with ``*``.
        choice: what to take of them.
        progress: called with the number of files checked and of all.

    Raises:
        DatasetError: one of its family, saying what is wrong with the files or the choice.
    """
    if choice.jpeg_channels not in CHANNELS:
        raise DatasetError(f"jpeg_channels is {choice.jpeg_channels!r}; there are {list(CHANNELS)}")
    files = find_files(source)
    wanted = [path for path in files if path.stem not in choice.skip]
    if not wanted:
        raise EmptyError(f"skip leaves none of the {len(files)} files of {source}")
    try:
        described = _describe(wanted[0], files, choice)
    except DatasetError as error:
        if len(wanted) == 1:
            raise
        raise type(error)(
            f"{error}\nTo go on without this file: skip=[{wanted[0].stem}]"
        ) from error
    found: list[Demonstration] = []
    names: list[str] = []
    masks: set[str] = set()
    problems: dict[str, str] = {}
    for done, path in enumerate(wanted):
        if progress is not None:
            progress(done, len(wanted))
        try:
            with open_file(path) as file:
                _require_layout(path, file, described.layout, wanted[0])
                selections = described.layout.masks(file)
                masks |= selections.keys()
                for group in _groups(path, file, described.layout):
                    name = _name(path, group, len(files))
                    names.append(name)
                    selected = selections.get(choice.mask or "", ())
                    if name in choice.skip or (
                        choice.mask is not None and _last(group) not in selected
                    ):
                        continue
                    with reading(path, group):
                        if problem := _problem(described, file[group]):
                            problems[name] = problem
                        else:
                            found.append(_demonstration(described, path, file, group, name))
        except (RootError, BrokenError) as error:
            problems[path.stem] = str(error)
    if progress is not None:
        progress(len(wanted), len(wanted))
    _require_known(choice, masks, [*names, *(path.stem for path in files)], source)
    _refuse_problems(problems, len(names))
    episodes = _by_success(found, choice.only_successful)
    if not episodes:
        raise EmptyError(f"of the {len(names)} episodes in {source} none is left to import")
    return dataclasses.replace(described, episodes=episodes, total=len(names))


def _describe(path: Path, files: tuple[Path, ...], choice: Choice) -> Demonstrations:
    """What all episodes are to be like, from the first one that has frames."""
    with open_file(path) as file:
        layout = _layout(path, file, choice.layout)
        groups = _groups(path, file, layout)
        first = next(
            (
                file[group]
                for group in groups
                if _name(path, group, len(files)) not in choice.skip
                and isinstance(item := file[group].get(layout.action), h5py.Dataset)
                and item.shape
                and len(item)
            ),
            None,
        )
        if first is None:
            raise EmptyError(
                f"{path}: none of its {len(groups)} episodes has a frame ({layout.action} is "
                f"missing or empty). It holds:\n{listing(file)}"
            )
        state = _state(first, layout, choice.state, path)
        action = _action(first, layout, choice.action, path)
        images = _images(first, layout, choice.cameras, path)
        sizes = {}
        for camera, key in images.items():
            if not len(first[key]):
                raise EmptyError(f"{path}: {first.name}/{key} holds no pictures")
            with reading(path, key):
                row = first[key][0]
            where = f"{first.name}/{key}, frame 0"
            shape = _picture(row, first[key], choice.jpeg_channels, where).shape
            sizes[camera] = (shape[0], shape[1])
        names = [n for k in state for n in layout.state_names(_last(k), _width(first[k]))]
        taken = {*state, *action, *images.values()}
        return Demonstrations(
            layout=layout,
            files=files,
            episodes=(),
            total=0,
            state={k: _width(first[k]) for k in state},
            action={k: _width(first[k]) for k in action},
            images=images,
            sizes=sizes,
            state_names=tuple(names),
            meaning=layout.actions(file, {_last(k): _width(first[k]) for k in action}),
            rate=layout.rate(file),
            facts=layout.facts(file),
            unused=tuple(k for k in _datasets(first) if k not in taken),
            jpeg_channels=choice.jpeg_channels,
        )


def _demonstration(
    described: Demonstrations, path: Path, file: h5py.File, group: str, name: str
) -> Demonstration:
    layout, episode = described.layout, file[group]
    length = len(episode[next(iter(described.action))])
    return Demonstration(
        name, path, group, length, layout.task(file, episode), layout.success(episode)
    )


# What there is, and what of it is meant.


def _layout(path: Path, file: h5py.File, wanted: str) -> Layout:
    fitting = [layout for layout in LAYOUTS.values() if layout.fits(file)]
    known = "".join(f"\n  {layout.name}: {layout.looks}" for layout in LAYOUTS.values())
    if wanted == AUTO:
        if len(fitting) == 1:
            return fitting[0]
        found = f"fits both {' and '.join(la.name for la in fitting)}; say layout=NAME"
        found = found if fitting else "is in no layout that is known here"
    elif wanted not in LAYOUTS:
        names = [AUTO, *LAYOUTS]
        raise DatasetError(f"layout is {wanted!r}; there are {names}.{did_you_mean(wanted, names)}")
    elif LAYOUTS[wanted] in fitting:
        return LAYOUTS[wanted]
    else:
        fits = "".join(f"; layout={layout.name} fits" for layout in fitting)
        found = f"is not in {wanted}'s layout{fits or ', nor in another known one'}"
    raise RootError(f"{path} {found}. Layouts:{known}\nIt holds:\n{listing(file)}")


def _groups(path: Path, file: h5py.File, layout: Layout) -> list[str]:
    groups = layout.groups(file)
    if not groups:
        raise EmptyError(f"{path} holds no episodes. It holds:\n{listing(file)}")
    return groups


def _name(path: Path, group: str, files: int) -> str:
    """What an episode is called: by its group, by its file, or by both where both are several."""
    demo = group.strip("/").rpartition("/")[2]
    if not demo:
        return path.stem
    return demo if files == 1 else f"{path.stem}/{demo}"


def _observations(episode: h5py.Group, layout: Layout) -> list[str]:
    """The vectors among the observations, by their names."""
    group = episode.get(layout.observations)
    items = group.items() if isinstance(group, h5py.Group) else ()
    return [k for k, item in items if isinstance(item, h5py.Dataset) and _is_vector(item)]


def _state(
    episode: h5py.Group, layout: Layout, wanted: Sequence[str] | None, path: Path
) -> tuple[str, ...]:
    if not isinstance(episode.get(layout.observations), h5py.Group):
        raise KeysError(
            f"{path}: {episode.name} has no observations ({layout.observations}/). "
            "robomimic's dataset_states_to_obs.py computes them from recorded simulator states. "
            f"It holds:\n{listing(episode)}"
        )
    keys = _observations(episode, layout)
    chosen = list(wanted) if wanted is not None else layout.default_state(keys)
    if not chosen:
        raise KeysError(
            f"{path}: which observations are the state? None has a name that is known here; say "
            f"state=[NAME,...]. There are: {', '.join(keys) or 'no vectors'}"
        )
    for key in chosen:
        if key not in keys:
            raise KeysError(
                f"state: {path} has no vector {layout.observations}/{key}."
                f"{did_you_mean(key, keys)} There are: {', '.join(keys) or 'none'}"
            )
    _require_distinct("state", chosen)
    return tuple(f"{layout.observations}/{key}" for key in chosen)


def _action(
    episode: h5py.Group, layout: Layout, wanted: Sequence[str] | None, path: Path
) -> tuple[str, ...]:
    keys = [k for k in _datasets(episode) if "/" not in k and _is_vector(episode[k])]
    chosen = list(wanted) if wanted is not None else [layout.action]
    if not chosen:
        raise KeysError("action=[] leaves no action; it takes names, as action=[actions]")
    for key in chosen:
        if key not in keys:
            raise KeysError(
                f"action: {path}, {episode.name} has no vector {key!r}."
                f"{did_you_mean(key, keys)} There are: {', '.join(keys) or 'none'}"
            )
    _require_distinct("action", chosen)
    return tuple(chosen)


def _images(
    episode: h5py.Group, layout: Layout, wanted: Sequence[str] | None, path: Path
) -> dict[str, str]:
    there = layout.images(episode)
    if wanted is None and not there:
        raise KeysError(
            f"{path} holds no pictures: {layout.no_images}, or import without (cameras=[])"
        )
    for name in wanted or ():
        if name not in there:
            raise KeysError(
                f"cameras: {path} has none called {name!r}.{did_you_mean(name, there)} "
                f"There are: {', '.join(there) or 'none'}"
            )
    chosen = list(there) if wanted is None else list(wanted)
    _require_distinct("cameras", chosen)
    for name in chosen:
        if problem := _no_picture(episode[there[name]]):
            rest = ",".join(c for c in there if not _no_picture(episode[there[c]]))
            raise KeysError(
                f"{path}: {there[name]} is {_form(episode[there[name]])}: {problem}. Leave it out "
                f"with cameras=[{rest}], or write the file anew"
            )
    return {name: there[name] for name in chosen}


def _require_distinct(name: str, chosen: Sequence[str]) -> None:
    if len(set(chosen)) < len(chosen):
        raise KeysError(f"{name} names something twice: {', '.join(chosen)}")


def _require_layout(path: Path, file: h5py.File, layout: Layout, first: Path) -> None:
    if not layout.fits(file):
        raise RootError(
            f"{path} is not in {layout.name}'s layout, as {first.name} is ({layout.looks}). It "
            f"holds:\n{listing(file)}"
        )


def _require_known(choice: Choice, masks: set[str], names: Sequence[str], source: str) -> None:
    if choice.mask is not None and choice.mask not in masks:
        raise DatasetError(
            f"mask: {source} has none called {choice.mask!r}.{did_you_mean(choice.mask, masks)} "
            f"There are: {', '.join(sorted(masks)) or 'none'}"
        )
    for name in choice.skip:
        if name not in names:
            raise DatasetError(
                f"skip: {source} has no episode {name!r}.{did_you_mean(name, names)} It has "
                f"{len(names)}, {names[0]} to {names[-1]}"
            )


def _refuse_problems(problems: dict[str, str], total: int) -> None:
    if not problems:
        return
    some = itertools.islice(problems.items(), NAMED)
    lines = "".join(f"\n  {name}: {problem}" for name, problem in some)
    more = f"\n  ... and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    raise BrokenError(
        f"{len(problems)} of {total} episodes cannot be imported:{lines}{more}\n"
        f"Mend them, or leave them out: skip=[{','.join(problems)}]"
    )


def _by_success(
    episodes: Sequence[Demonstration], only_successful: bool
) -> tuple[Demonstration, ...]:
    """Those that succeed, where that is asked for; success of all or of none."""
    silent = [e.name for e in episodes if e.success is None]
    if only_successful and silent:
        raise DatasetError(
            f"only_successful=true: {len(silent)} of {len(episodes)} episodes ({silent[0]}, ...) "
            "do not say whether they succeed; that is read from robomimic's sparse rewards (0 or 1)"
        )
    if silent:
        return tuple(dataclasses.replace(e, success=None) for e in episodes)
    return tuple(e for e in episodes if not only_successful or e.success.any())  # type: ignore[union-attr]


# Single episodes.


def _problem(described: Demonstrations, episode: h5py.Group) -> str | None:
    """What is wrong with an episode, in one line; None if nothing is."""
    widths, images = described.state | described.action, described.images
    keys = [*widths, *images.values()]
    if lacking := [k for k in keys if not isinstance(episode.get(k), h5py.Dataset)]:
        return f"it lacks {', '.join(lacking)}"
    lengths = {k: len(episode[k]) if episode[k].shape else 0 for k in keys}
    said = episode.attrs.get("num_samples")
    if said is not None:
        lengths["attribute num_samples"] = int(said)
    if not any(lengths.values()):
        return "it is empty: there are no frames"
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{k} {n}" for k, n in lengths.items())
        return f"its parts have different lengths: {told}"
    for key, width in widths.items():
        if not _is_vector(episode[key]) or _width(episode[key]) != width:
            return f"{key} is {_form(episode[key])}, elsewhere {width} numbers a frame"
        values = _stack(episode, [key])
        if bad := np.argwhere(~np.isfinite(values)).tolist():
            row, column = bad[0]
            value = f"{values[row, column]} in frame {row}, dimension {column}"
            return f"{key} is {value}; {len(bad)} such values"
    for camera, key in images.items():
        if problem := _no_picture(episode[key]):
            return f"{key} is {_form(episode[key])}: {problem}"
        size = _picture_size(episode[key])
        if size is not None and size != described.sizes[camera]:
            elsewhere = _pixels(described.sizes[camera])
            return f"{key} has {_pixels(size)} pixels, elsewhere {elsewhere}"
    return None


def _datasets(group: h5py.Group) -> list[str]:
    """All datasets below a group, by their paths."""
    found: list[str] = []
    group.visititems(lambda name, item: found.append(name) if _is_dataset(item) else None)
    return found


def _is_dataset(item: object) -> bool:
    return isinstance(item, h5py.Dataset)


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _is_vector(dataset: h5py.Dataset) -> bool:
    """Numbers, ``[T]`` or ``[T, width]``, and no JPEG."""
    return dataset.ndim in (1, 2) and dataset.dtype.kind in "fiub"


def _width(dataset: h5py.Dataset) -> int:
    return dataset.shape[1] if dataset.ndim == 2 else 1


def _stack(group: h5py.Group, keys: Sequence[str]) -> np.ndarray:
    """Datasets side by side, float32 ``[T, width]``."""
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        parts = [group[key][()].astype(np.float32) for key in keys]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


# Pictures.


def _is_encoded(dataset: h5py.Dataset) -> bool:
    """A compressed picture a frame: padded rows of bytes, strings, or rows of different lengths."""
    padded = dataset.ndim == 2 and dataset.dtype == np.uint8
    return padded or (dataset.ndim == 1 and dataset.dtype.kind in "SO")


def _channels_first(dataset: h5py.Dataset) -> bool:
    return dataset.shape[1] == 3 and dataset.shape[3] != 3


def _no_picture(dataset: h5py.Dataset) -> str | None:
    """Why a dataset is not taken as colour pictures; None if it is."""
    if _is_encoded(dataset):
        return None
    if dataset.ndim != 4:
        return "pictures are [T, H, W, 3], or [T, N] bytes of a JPEG each"
    if 3 not in (dataset.shape[1], dataset.shape[3]):
        return "colour pictures have three channels"
    if dataset.dtype != np.uint8:
        return (
            "pictures are uint8 here, since it is not known what a brightness of 1 means in others"
        )
    return None


def _picture_size(dataset: h5py.Dataset) -> tuple[int, int] | None:
    """``(H, W)``; None where only decoding tells."""
    if _is_encoded(dataset):
        return None
    _, first, second, third = dataset.shape
    return (second, third) if _channels_first(dataset) else (first, second)


def _picture(
    row: Any, dataset: h5py.Dataset, channels: str, where: str, hint: str = ""
) -> np.ndarray:
    """One row of a dataset as uint8 ``[H, W, 3]``.

    OpenCV's encoder takes its input for BGR. ALOHA's recorder hands it RGB, so that red and blue
    are swapped inside the file and right again in what `cv2.imdecode` returns; other viewers show
    them swapped. With `channels` "bgr" the file was made as OpenCV means it.
    """
    if not _is_encoded(dataset):
        return np.moveaxis(row, 0, -1) if _channels_first(dataset) else row
    content = row.tobytes() if isinstance(row, np.ndarray) else bytes(row)
    try:
        with Image.open(io.BytesIO(content)) as picture:
            decoded = np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise BrokenError(
            f"{dataset.file.filename}: {where} cannot be decoded ({error}; {len(content):,} bytes "
            f"beginning with {content[:4].hex(' ')}). {hint}".rstrip()
        ) from error
    return np.ascontiguousarray(decoded[..., ::-1]) if channels == "rgb" else decoded


def _form(dataset: h5py.Dataset) -> str:
    return f"{dataset.dtype} {list(dataset.shape)}"


def _pixels(size: Sequence[int]) -> str:
    return "x".join(map(str, size[:2]))


def _leave_out(episode: Demonstration) -> str:
    return f"Leave it out with skip=[{episode.name}]"
