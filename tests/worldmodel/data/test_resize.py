"""Resizing: identity at native size, independent of memory layout, an average of all pixels."""

import pytest
import torch

from worldmodel.data import resize_frames


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))


def test_native_size_is_exact() -> None:
    x = frames(2, 3, 3, 20, 30)
    assert torch.equal(resize_frames(x, (20, 30)), x)


@pytest.mark.parametrize("size", [(10, 15), (7, 33), (40, 60)])
def test_shape_and_layout(size: tuple[int, int]) -> None:
    x = frames(4, 3, 20, 30)
    channels_last = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    out = resize_frames(x, size)
    assert out.shape == (4, 3, *size)
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    assert torch.equal(out, resize_frames(channels_last, size))
    assert torch.equal(out[1], resize_frames(x[1], size))


def test_every_pixel_counts() -> None:
    x = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    x[:, :, ::2, ::2] = 255  # sampled without averaging, this would be all black or all white
    assert (resize_frames(x, (8, 8)).float() - 255 / 4).abs().max() < 16
    assert torch.equal(
        resize_frames(torch.full_like(x, 93), (8, 8)), torch.full((1, 3, 8, 8), 93).byte()
    )
