"""Distances between pictures: known values, independent implementations, order under noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from policies.judge import pictures
from policies.judge.pictures import (
    MissingWeightsError,
    frechet_distance,
    fvd,
    gmsd,
    lpips,
    moving_mask,
    moving_psnr,
    psnr,
    ssim,
)

EQUAL = {psnr: 10 * math.log10(255**2 / 1e-2), ssim: 1.0, gmsd: 0.0}
CLOSER_IS_HIGHER = {psnr: True, ssim: True, gmsd: False}
MEASURES = pytest.mark.parametrize("measure", [psnr, ssim, gmsd])


def scene(*lead, size=32, channels=3, seed=0):
    """Smooth pictures with an edge: ``[..., C, size, size]`` uint8."""
    rng = torch.Generator().manual_seed(seed)
    count = math.prod(lead)
    coarse = torch.rand((count, channels, 5, 5), generator=rng) * 200
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    smooth[..., size // 3 : size // 2, 4:-6] += 55
    return smooth.clamp(0, 255).byte().reshape(*lead, channels, size, size)


def noisy(picture, sigma, seed=1):
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(picture.shape, generator=rng) * sigma
    return (picture.float() + noise).clamp(0, 255).round().byte()


@MEASURES
def test_equal_pictures_score_the_best_there_is(measure):
    picture = scene(2)
    assert measure(picture, picture).tolist() == pytest.approx([EQUAL[measure]] * 2, rel=1e-6)


@MEASURES
def test_more_noise_scores_worse(measure):
    picture = scene(1, size=48)
    values = [float(measure(noisy(picture, sigma), picture)) for sigma in (0, 2, 5, 12, 30)]
    assert values == sorted(values, reverse=CLOSER_IS_HIGHER[measure])
    assert len(set(values)) == 5


@MEASURES
def test_neither_picture_is_the_reference(measure):
    a, b = scene(3), scene(3, seed=7)
    torch.testing.assert_close(measure(a, b), measure(b, a))


@MEASURES
def test_a_batch_is_its_pictures_one_by_one(measure):
    a, b = scene(2, 3), noisy(scene(2, 3), 9)
    together = measure(a, b)
    assert together.shape == (2, 3)
    alone = torch.tensor([[float(measure(a[i, j], b[i, j])) for j in range(3)] for i in range(2)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together, measure(a.float(), b.float()))


def test_psnr_is_its_definition():
    a = torch.zeros(1, 4, 4)
    assert float(psnr(a, a + 255)) == pytest.approx(0)
    assert float(psnr(a, a + 25.5)) == pytest.approx(20)


def test_only_masked_pixels_count():
    a = scene(2)
    b = a.clone()
    b[..., :16, :] = 255 - b[..., :16, :]
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[0, :, 16:] = True
    equal, nothing = psnr(a, b, mask).tolist()
    assert equal == pytest.approx(EQUAL[psnr])
    assert math.isnan(nothing)
    torch.testing.assert_close(psnr(a, b, torch.ones_like(mask)), psnr(a, b))


def test_what_moved_is_told_by_the_truth():
    last = scene(2)
    truth = last[:, None].repeat(1, 3, 1, 1, 1)
    truth[:, 1:, 0, 2:6, 2:6] ^= 0x40  # by 64 grey levels, in one channel
    mask = moving_mask(truth, last)
    assert mask.shape == (2, 3, 1, 32, 32)
    assert mask.sum((2, 3, 4)).tolist() == [[0, 16, 16]] * 2
    assert torch.equal(mask, moving_mask(truth, last[:, None]))
    assert not moving_mask(truth, last, threshold=64).any()
    copied = last[:, None].expand_as(truth)
    values = moving_psnr(copied, truth, last)
    assert values[:, 0].isnan().all()
    expected = 10 * math.log10(255**2 / (64**2 / 3))
    assert values[:, 1:].flatten().tolist() == pytest.approx([expected] * 4)
    assert (psnr(copied, truth)[:, 1:] > values[:, 1:]).all(), "a still background flatters"


def naive_ssim(a, b):
    """Wang et al. pixel by pixel, in float64."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                c1, c2 = 2.55**2, 7.65**2
                top = (2 * mp * mq + c1) * (2 * cov + c2)
                values.append(top / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.mean(values)


@pytest.mark.parametrize("size", [11, 18])
def test_ssim_is_the_published_formula(size):
    a = scene(1, size=size)[0]
    for b in (noisy(a, 15), 255 - a, (a.float() * 0.3 + 170).byte(), torch.full_like(a, 200)):
        assert float(ssim(a, b)) == pytest.approx(naive_ssim(a, b), abs=2e-5)


def naive_gmsd(a, b):
    """Xue et al. pixel by pixel: grey, mean of 2 x 2, Prewitt with zeros outside."""

    def slopes(picture):
        grey = (picture.double().numpy() * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0)
        half = grey.reshape(grey.shape[0] // 2, 2, -1, 2).mean((1, 3))
        p = np.pad(half, 1)
        out = np.zeros_like(half)
        for i in range(half.shape[0]):
            for j in range(half.shape[1]):
                w = p[i : i + 3, j : j + 3]
                across = (w[:, 0] - w[:, 2]).sum() / 3
                down = (w[0] - w[2]).sum() / 3
                out[i, j] = math.hypot(across, down)
        return out

    x, y = slopes(a), slopes(b)
    return ((2 * x * y + 170) / (x**2 + y**2 + 170)).std()


def test_gmsd_is_the_published_formula():
    a = scene(1)[0]
    for b in (noisy(a, 15), 255 - a, torch.full_like(a, 90), a.roll(2, -1)):
        assert float(gmsd(a, b)) == pytest.approx(naive_gmsd(a, b), abs=1e-5)
    grey = a[:1]
    torch.testing.assert_close(
        gmsd(grey, noisy(grey, 9)),
        gmsd(grey.repeat(3, 1, 1), noisy(grey, 9).repeat(3, 1, 1)),
        atol=1e-5,
        rtol=0,
    )


@MEASURES
def test_nonsense_is_refused(measure):
    a = scene(1)
    with pytest.raises(ValueError, match=r"one shape, found \[1, 3, 32, 32\] and \[1, 3, 31, 32\]"):
        measure(a, a[:, :, 1:])
    with pytest.raises(ValueError, match=r"in \[0, 255\], found -1 to"):
        measure(a.float() / 127.5 - 1, a.float() / 127.5 - 1)


def test_small_pictures_are_refused_by_size():
    a = scene(1, size=12)[..., :10, :]
    with pytest.raises(ValueError, match="SSIM needs pictures of at least 11 .*found 10 x 12"):
        ssim(a, a)
    with pytest.raises(ValueError, match="GMSD needs"):
        gmsd(a[..., :5, :], a[..., :5, :])
    with pytest.raises(ValueError, match="1 or 3 channels, found 2"):
        gmsd(a[:, :2], a[:, :2])


# LPIPS and FVD: the arithmetic, on weights of the right shapes drawn at random.

LAYERS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


@pytest.fixture
def lpips_files(tmp_path, monkeypatch):
    """A torch hub cache and a package with weights of LPIPS's shapes."""
    rng = torch.Generator().manual_seed(0)
    hub, package = tmp_path / "hub" / "checkpoints", tmp_path / "lpips" / "weights" / "v0.1"
    hub.mkdir(parents=True)
    package.mkdir(parents=True)
    (tmp_path / "lpips" / "__init__.py").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.syspath_prepend(tmp_path)
    alexnet, heads = {}, {}
    for head, (number, (out, into, side)) in enumerate(LAYERS.items()):
        scale = (into * side * side) ** -0.5
        alexnet[f"features.{number}.weight"] = scale * torch.randn(
            (out, into, side, side), generator=rng
        )
        alexnet[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=rng)
        heads[f"lin{head}.model.1.weight"] = torch.rand((1, out, 1, 1), generator=rng)
    torch.save(alexnet, hub / pictures.ALEXNET)
    torch.save(heads, package / "alex.pth")
    yield alexnet, heads
    pictures._weights.cache_clear()


def naive_lpips(a, b, alexnet, heads):
    """The published network, written with modules, and its distance, in float64."""
    features = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 11, 4, 2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(64, 192, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(192, 384, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(384, 256, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(256, 256, 3, padding=1),
        torch.nn.ReLU(),
    ).double()
    features.load_state_dict({k.removeprefix("features."): v for k, v in alexnet.items()})
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    seen = []
    for picture in (a, b):
        x = ((picture.double()[None] / 255 * 2 - 1) - shift) / scale
        layers = []
        for number, module in enumerate(features):
            x = module(x)
            if number in (1, 4, 7, 9, 11):
                layers.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        seen.append(layers)
    total = 0.0
    for head, (x, y) in enumerate(zip(*seen, strict=True)):
        weight = heads[f"lin{head}.model.1.weight"].double()
        total += float((weight * (x - y).square()).sum(1).mean())
    return total


@torch.no_grad()
def test_lpips_is_the_published_formula(lpips_files):
    assert pictures.lpips_available()
    a = scene(3, size=40)
    b = torch.stack([noisy(a[0], 20), 255 - a[1], a[2]])
    values = lpips(a, b)
    expected = [naive_lpips(x, y, *lpips_files) for x, y in zip(a, b, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-8)
    assert values[2] == 0
    assert values[0] > 0
    with pytest.raises(ValueError, match="LPIPS needs pictures of at least 31"):
        lpips(a[..., :30], b[..., :30])


def test_missing_weights_are_named_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not pictures.lpips_available()
    assert "alexnet-owt" in str(pictures.lpips_missing())
    with pytest.raises(MissingWeightsError, match="LPIPS cannot run: AlexNet"):
        lpips(scene(1), scene(1))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / pictures.ALEXNET).touch()
    monkeypatch.setattr(pictures, "LPIPS_WEIGHTS", {"no_such_package": "alex.pth"})
    assert "no_such_package" in str(pictures.lpips_missing())
    monkeypatch.delenv(pictures.FVD_VARIABLE, raising=False)
    assert pictures.FVD_VARIABLE in str(pictures.fvd_missing())
    monkeypatch.setenv(pictures.FVD_VARIABLE, str(tmp_path / "i3d.pt"))
    with pytest.raises(MissingWeightsError, match="not there: .*i3d.pt"):
        fvd(torch.zeros(2, 3, 3, 8, 8), torch.zeros(2, 3, 3, 8, 8))


def test_frechet_distance_of_normal_distributions():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn((4000, 3), generator=rng, dtype=torch.float64)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov())).T  # exactly standard
    stretch, shift = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0.0, 3.0, 0.0])
    # Of axis-aligned normals it is the shift and the differences of standard deviations, squared.
    assert frechet_distance(a, a * stretch + shift) == pytest.approx(9 + 1 + 0.25)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    turn, _ = torch.linalg.qr(torch.randn((3, 3), generator=rng, dtype=torch.float64))
    b = a * stretch + shift
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(10.25)
    few = a[:2]
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


class Detector(torch.nn.Module):
    """Called like I3D: features are the mean colour of the first and of the last frame."""

    def forward(self, x, rescale: bool, resize: bool, return_features: bool):
        assert rescale
        assert resize
        assert return_features
        return torch.cat([x[:, :, 0].mean((2, 3)), x[:, :, -1].mean((2, 3))], 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_fvd_compares_the_features_of_films(tmp_path):
    file = tmp_path / "i3d.pt"
    torch.jit.script(Detector()).save(str(file))
    films = scene(6, 4, size=16)
    assert pictures.fvd_missing(file) is None
    assert fvd(films, films, file, batch_size=4) == pytest.approx(0, abs=1e-3)
    features = torch.cat([films[:, t].float().mean((2, 3)) for t in (0, -1)], 1)
    other = noisy(films, 40)
    changed = torch.cat([other[:, t].float().mean((2, 3)) for t in (0, -1)], 1)
    expected = frechet_distance(features, changed)
    assert fvd(films, other, file, batch_size=4) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    with pytest.raises(ValueError, match=r"two and more films .* found \[1, 4, 3, 16, 16\]"):
        fvd(films[:1], films, file)
