"""How far apart two pictures are: PSNR, SSIM, GMSD, and where weights are at hand LPIPS and FVD.

Pictures are uint8, or float in [0, 255], ``[..., C, H, W]``; every measure gives one number a
picture, ``[...]``, of float32 on the pictures' device.

No measure fetches anything. LPIPS and FVD are defined by the weights of published networks: where a
file is missing, `lpips_missing` and `fvd_missing` name it, and a report says so in place of a
number.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..offline import MOVING

RANGE = 255.0
MSE_FLOOR = 1e-2
"""Of the squared error in squared grey levels, so that equal pictures score a finite 68 dB."""
WINDOW, SIGMA = 11, 1.5  # of SSIM
GREY = (0.299, 0.587, 0.114)  # luminance of red, green and blue (ITU-R BT.601)
LPIPS_SMALLEST = 31  # pixels a side; AlexNet's pooling leaves nothing of less
FVD_VARIABLE = "SELFFLOW_I3D"
ALEXNET = "alexnet-owt-7be5be79.pth"
# Packages that carry the weights of the differences (6 kB), and where.
LPIPS_WEIGHTS = {
    "lpips": "weights/v0.1/alex.pth",
    "torchmetrics": "functional/image/lpips_models/alex.pth",
}


class MissingWeightsError(FileNotFoundError):
    """A measure needs the weights of a published network and they are not on this machine."""


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, higher is closer; 68.1 (`MSE_FLOOR`) for equal pictures.

    Args:
        a, b: pictures ``[..., C, H, W]``.
        mask: bool ``[..., 1, H, W]``, the pixels that count; default: all.

    Returns:
        ``[...]``; NaN where the mask holds no pixel.

    Raises:
        ValueError: the pictures differ in shape or leave [0, 255].
    """
    first, second, lead = _pair(a, b)
    squares = (first - second).square()
    if mask is None:
        mse = squares.mean((1, 2, 3))
    else:
        counts = mask.expand(*lead, *a.shape[-3:]).reshape(squares.shape)
        # Without a pixel this is 0 / 0 = NaN: no error is known, not an error of zero.
        mse = (squares * counts).sum((1, 2, 3)) / counts.sum((1, 2, 3))
    return (10 * torch.log10(RANGE**2 / mse.clamp_min(MSE_FLOOR))).reshape(lead)


def moving_mask(frames: Tensor, last: Tensor, threshold: float = MOVING) -> Tensor:
    """Pixels that differ from the last given frame by more than `threshold` grey levels.

    A static background is predicted by copying; what moves is what a world model is for.

    Args:
        frames: true future ``[..., T, C, H, W]``.
        last: the last given frame ``[..., C, H, W]`` (then it is that of all T), or
            ``[..., 1, C, H, W]``.
        threshold: grey levels, of the channel that differs most.

    Returns:
        bool ``[..., T, 1, H, W]``.
    """
    if last.ndim == frames.ndim - 1:
        last = last.unsqueeze(-4)
    return ((frames.float() - last.float()).abs() > threshold).any(-3, keepdim=True)


def moving_psnr(a: Tensor, b: Tensor, last: Tensor, threshold: float = MOVING) -> Tensor:
    """`psnr` of a guess `a` of true frames `b` ``[..., T, C, H, W]`` where `b` moved from `last`.

    NaN where nothing moved. The mask is the truth's alone, so that every guess of one future is
    judged on the same pixels.
    """
    return psnr(a, b, moving_mask(b, last, threshold))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity: 1 for equal pictures, lower is less alike.

    Gaussian windows of 11 x 11 pixels (sigma 1.5) that lie wholly inside the picture, K1 = 0.01,
    K2 = 0.03; the mean over windows and channels.

    Source: Z. Wang et al., "Image quality assessment: from error visibility to structural
    similarity", IEEE Transactions on Image Processing 13 (2004).

    Raises:
        ValueError: as `psnr`, and for pictures of less than 11 pixels a side.
    """
    first, second, lead = _pair(a, b, smallest=WINDOW, measure="SSIM")
    at = torch.arange(WINDOW, device=first.device, dtype=first.dtype) - WINDOW // 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()

    def blur(x: Tensor) -> Tensor:
        x = x.reshape(-1, 1, *x.shape[-2:])
        return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    # Moments about the middle grey: float32 would lose a small variance beside squares of 255.
    x, y = first - RANGE / 2, second - RANGE / 2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    cov = blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + RANGE / 2, mean_y + RANGE / 2
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * structure).reshape(len(first), -1).mean(1).reshape(lead)


def gmsd(a: Tensor, b: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation: 0 for equal pictures, higher is less alike.

    A perceptual measure without weights: edges of both pictures at half resolution are compared
    pixel by pixel, and the score is how unevenly they agree. A fault spread evenly over the
    picture costs little, hence never read it alone.

    Source: W. Xue et al., "Gradient magnitude similarity deviation: a highly efficient perceptual
    image quality index", IEEE Transactions on Image Processing 23 (2014).

    Raises:
        ValueError: as `psnr`, for pictures of less than 6 pixels a side, and for other than 1 or
            3 channels.
    """
    first, second, lead = _pair(a, b, smallest=6, measure="GMSD")
    slopes = [_edges(_luminance(picture)) for picture in (first, second)]
    constant = 170.0
    similarity = (2 * slopes[0] * slopes[1] + constant) / (
        slopes[0].square() + slopes[1].square() + constant
    )
    return similarity.flatten(1).std(1, correction=0).reshape(lead)


def lpips_missing() -> str | None:
    """What `lpips` lacks on this machine, in words; None where it can run."""
    if not (folder := Path(torch.hub.get_dir(), "checkpoints") / ALEXNET).is_file():
        return f"AlexNet's weights {folder.name} are not in the torch hub cache"
    if _lpips_file() is None:
        return f"none of the packages that carry LPIPS's weights is there ({_names()})"
    return None


def lpips_available() -> bool:
    """Whether `lpips` can run on this machine."""
    return lpips_missing() is None


@torch.no_grad()
def lpips(a: Tensor, b: Tensor) -> Tensor:
    """Learned perceptual distance (AlexNet, version 0.1): 0 for equal pictures, higher is worse.

    Source: R. Zhang et al., "The unreasonable effectiveness of deep features as a perceptual
    metric", CVPR 2018.

    Raises:
        MissingWeightsError: the weights are not on this machine.
        ValueError: as `psnr`, for pictures of less than 31 pixels a side, and for other than 1 or 3
            channels.
    """
    if (missing := lpips_missing()) is not None:
        raise MissingWeightsError(f"LPIPS cannot run: {missing}")
    first, second, lead = _pair(a, b, smallest=LPIPS_SMALLEST, measure="LPIPS")
    file = _lpips_file()
    assert file is not None  # lpips_missing would have said so
    alexnet = _weights(Path(torch.hub.get_dir(), "checkpoints") / ALEXNET, first.device)
    heads = _weights(file, first.device)
    distance = first.new_zeros(len(first))
    layers = zip(_alexnet(first, alexnet), _alexnet(second, alexnet), strict=True)
    for number, (x, y) in enumerate(layers):
        difference = (_unit(x) - _unit(y)).square()
        weights = heads[f"lin{number}.model.1.weight"]
        distance += F.conv2d(difference, weights).mean((1, 2, 3))
    return distance.reshape(lead)


def fvd_missing(weights: str | Path | None = None) -> str | None:
    """What `fvd` lacks on this machine, in words; None where it can run."""
    file = weights or os.environ.get(FVD_VARIABLE)
    if not file:
        return f"no file with I3D's weights is named ({FVD_VARIABLE})"
    if not Path(file).is_file():
        return f"the file with I3D's weights is not there: {file}"
    return None


@torch.no_grad()
def fvd(
    real: Tensor, imagined: Tensor, weights: str | Path | None = None, *, batch_size: int = 8
) -> float:
    """Frechet video distance between two sets of films; lower is closer.

    It depends on how many films there are (few of them score too high), so compare it only at
    equal numbers and say how many.

    Args:
        real, imagined: films ``[N, T, 3, H, W]``, N >= 2; I3D needs about ten frames.
        weights: the TorchScript file of I3D ("i3d_torchscript.pt", trained on Kinetics-400) that
            is called with ``rescale=True, resize=True, return_features=True``; default: the file
            that the environment variable ``SELFFLOW_I3D`` names.

    Source: T. Unterthiner et al., "FVD: a new metric for video generation", ICLR workshop 2019.

    Raises:
        MissingWeightsError: the file is not on this machine.
        ValueError: films of other shapes, or fewer than two in a set.
    """
    if (missing := fvd_missing(weights)) is not None:
        raise MissingWeightsError(f"FVD cannot run: {missing}")
    for films in (real, imagined):
        if films.ndim != 5 or films.shape[2] != 3 or len(films) < 2:
            raise ValueError(
                f"FVD compares sets of two and more films [N, T, 3, H, W], found {_shape(films)}"
            )
    file = weights or os.environ[FVD_VARIABLE]
    network = torch.jit.load(str(file), map_location=real.device).eval()

    def features(films: Tensor) -> Tensor:
        parts = [
            network(part.transpose(1, 2).float(), rescale=True, resize=True, return_features=True)
            for part in films.split(batch_size)
        ]
        return torch.cat(parts).cpu()

    return frechet_distance(features(real), features(imagined))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between normal distributions fitted to features ``[N, D]``.

    ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``.
    """
    a, b = a.double(), b.double()
    covariances = [torch.atleast_2d(x.T.cov()) for x in (a, b)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # S_a S_b has the eigenvalues of the symmetric root @ S_b @ root, which eigh takes safely.
    shared = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    distance = shift + covariances[0].trace() + covariances[1].trace() - 2 * shared
    return max(0.0, float(distance))


def _pair(
    a: Tensor, b: Tensor, *, smallest: int = 1, measure: str = ""
) -> tuple[Tensor, Tensor, torch.Size]:
    """Both as float32 ``[N, C, H, W]``, and the leading shape."""
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(
            f"expected two pictures [..., C, H, W] of one shape, found {_shape(a)} and {_shape(b)}"
        )
    if min(a.shape[-2:]) < smallest:
        raise ValueError(
            f"{measure} needs pictures of at least {smallest} pixels a side, found "
            f"{a.shape[-2]} x {a.shape[-1]}; magnify them first"
        )
    for picture in (a, b):
        if picture.is_floating_point() and picture.numel():
            low, high = float(picture.min()), float(picture.max())
            if low < -0.5 or high > RANGE + 0.5:
                raise ValueError(f"expected grey levels in [0, 255], found {low:.3g} to {high:.3g}")
    lead = a.shape[:-3]
    flat = [x.float().reshape(-1, *x.shape[-3:]) for x in (a, b)]
    return flat[0], flat[1], lead


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _luminance(pictures: Tensor) -> Tensor:
    """``[N, 1, H, W]``."""
    if pictures.shape[1] == 1:
        return pictures
    if pictures.shape[1] != 3:
        raise ValueError(f"expected 1 or 3 channels, found {pictures.shape[1]}")
    return (pictures * pictures.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)


def _edges(grey: Tensor) -> Tensor:
    """Magnitude of the Prewitt gradient at half resolution."""
    half = F.avg_pool2d(grey, 2)
    across = half.new_tensor([[1.0, 0.0, -1.0]] * 3).view(1, 1, 3, 3) / 3
    kernels = torch.cat([across, across.transpose(-1, -2)])
    return F.conv2d(half, kernels, padding=1).square().sum(1, keepdim=True).sqrt()


def _names() -> str:
    return ", ".join(LPIPS_WEIGHTS)


def _lpips_file() -> Path | None:
    """The weights of LPIPS's differences, from whichever package carries them."""
    for package, inside in LPIPS_WEIGHTS.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or []:
            if (file := Path(folder) / inside).is_file():
                return file
    return None


@cache
def _weights(file: Path, device: torch.device) -> dict[str, Tensor]:
    return torch.load(file, map_location=device, weights_only=True)


def _alexnet(pictures: Tensor, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Activations after AlexNet's five convolutions, as LPIPS looks at them."""
    if pictures.shape[1] == 1:
        pictures = pictures.expand(-1, 3, -1, -1)
    if pictures.shape[1] != 3:
        raise ValueError(f"expected 1 or 3 channels, found {pictures.shape[1]}")
    shift = pictures.new_tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = pictures.new_tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x = (pictures / (RANGE / 2) - 1 - shift) / scale
    seen = []
    # Number of the layer in torchvision's `features`, stride, padding, pooled before.
    for number, stride, padding, pooled in (
        (0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False),
    ):  # fmt: skip
        if pooled:
            x = F.max_pool2d(x, 3, 2)
        weight, bias = (weights[f"features.{number}.{part}"] for part in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, stride, padding))
        seen.append(x)
    return seen


def _unit(x: Tensor) -> Tensor:
    """Activations scaled to length 1 over channels."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
