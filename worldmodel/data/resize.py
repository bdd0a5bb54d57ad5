"""The one way in which frames are resized: for training, evaluation and the robot alike."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Stretch frames to `size`; the identity, bit for bit, where they have that size already.

    Antialiased bilinear, so that shrinking averages over all pixels instead of skipping some.
    The aspect ratio is not kept: every pixel of the camera reaches the model. On a CPU this is
    integer arithmetic (15 times faster than floats); an accelerator has floats only and may
    differ by one level.

    Args:
        frames: uint8 ``[..., C, h, w]``.
        size: ``(H, W)`` in pixels.

    Returns:
        uint8 ``[..., C, H, W]``, contiguous.
    """
    *batch, channels, height, width = frames.shape
    if (height, width) == tuple(size):
        return frames.contiguous()
    # One memory layout for every caller: the integer kernels' rounding is then the same too.
    flat = frames.reshape(-1, channels, height, width)
    flat = flat.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    if flat.device.type == "cpu":
        out = F.interpolate(flat, size=size, mode="bilinear", antialias=True)
    else:
        smooth = F.interpolate(flat.float(), size=size, mode="bilinear", antialias=True)
        out = smooth.round().clamp(0, 255).to(frames.dtype)
    return out.contiguous().reshape(*batch, channels, *size)
