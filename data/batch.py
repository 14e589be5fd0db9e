"""Varying a whole batch of small pictures at once. Each row of u, uniform in [0, 1), decides one picture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def jostle(
    x: Tensor,
    u: np.ndarray,
    *,
    padding: int,
    hflip: float,
    rotate: float = 0.0,
    shear: float = 0.0,
    zoom: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """(B, C, H, W) uint8, u (B, 6) -> shifted by whole pixels, mirrored; turned, sheared and zoomed where asked.

    Shifts are whole pixels of -padding..padding; what comes in from outside is black. Unless something is turned,
    sheared or zoomed the result is uint8; else float in 0..1.
    """
    shift = np.floor(u[:, :2] * (2 * padding + 1)).astype(np.int64) - padding  # (B, 2) rows, columns
    flip = u[:, 2] < hflip
    if rotate == 0 and shear == 0 and zoom == (1.0, 1.0):
        return shifted(x, shift, flip)
    h, w = x.shape[-2:]
    angle = np.radians((2 * u[:, 3] - 1) * rotate)
    slant = np.tan(np.radians((2 * u[:, 4] - 1) * shear))
    factor = zoom[0] * (zoom[1] / zoom[0]) ** u[:, 5]
    mirror = np.where(flip, -1.0, 1.0)
    # output pixel -> input pixel, in pixels from the middle: R(angle) [[1, slant], [0, 1]] / factor, columns mirrored
    c, s = np.cos(angle) / factor, np.sin(angle) / factor
    matrix = np.empty((len(x), 2, 3), np.float32)
    matrix[:, 0, 0], matrix[:, 0, 1] = mirror * c, (c * slant - s) * h / w
    matrix[:, 1, 0], matrix[:, 1, 1] = mirror * s * w / h, s * slant + c
    matrix[:, 0, 2], matrix[:, 1, 2] = 2 * shift[:, 1] / w, 2 * shift[:, 0] / h
    points = F.affine_grid(torch.from_numpy(matrix), list(x.shape), align_corners=False)
    return F.grid_sample(x.float().div_(255), points, mode="bilinear", padding_mode="zeros", align_corners=False)


def shifted(x: Tensor, shift: np.ndarray, flip: np.ndarray) -> Tensor:
    """out[i, :, r, c] = x[i, :, r + shift[i, 0], c + shift[i, 1]], 0 outside; then mirrored where flip."""
    source = x.numpy()
    out = np.zeros_like(source)
    h, w = source.shape[-2:]
    for i, ((dy, dx), mirrored) in enumerate(zip(shift.tolist(), flip.tolist(), strict=True)):
        y0, y1, x0, x1 = max(dy, 0), min(h + dy, h), max(dx, 0), min(w + dx, w)
        part = source[i, :, y0:y1, x0:x1]
        if mirrored:
            out[i, :, y0 - dy : y1 - dy, w - (x1 - dx) : w - (x0 - dx)] = part[:, :, ::-1]
        else:
            out[i, :, y0 - dy : y1 - dy, x0 - dx : x1 - dx] = part
    return torch.from_numpy(out)


def jitter(x: Tensor, u: np.ndarray, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Brightness, then contrast about the picture's mean grey, then saturation about each pixel's grey.

    (B, C, H, W), u (B, 3) -> float in 0..1, by factors from 1 - v to 1 + v; unchanged (uint8 stays so) where all are 0.
    """
    if brightness == contrast == saturation == 0:
        return x
    x = x.float().div_(255) if x.dtype == torch.uint8 else x
    factor = (
        torch.from_numpy(1 + (2 * u - 1) * np.array([brightness, contrast, saturation])).float().view(-1, 3, 1, 1, 1)
    )
    if brightness:
        x = (x * factor[:, 0]).clamp_(0, 1)
    if contrast:
        mean = grey(x).mean((2, 3), keepdim=True)
        x = torch.lerp(mean, x, factor[:, 1]).clamp_(0, 1)
    if saturation and x.shape[1] == 3:
        x = torch.lerp(grey(x).expand_as(x), x, factor[:, 2]).clamp_(0, 1)
    return x


def grey(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): ITU-R 601 luma of 3 channels, or the one there is."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def wipe(x: Tensor, u: np.ndarray, probability: float, size: tuple[float, float]) -> Tensor:
    """With `probability` a square of 0 (the mean colour, once normalised), its middle anywhere; u (B, 4)."""
    if probability == 0:
        return x
    h, w = x.shape[-2:]
    side = np.rint((size[0] + u[:, 1] * (size[1] - size[0])) * min(h, w)).astype(int)
    top, left = np.floor(u[:, 2] * h).astype(int) - side // 2, np.floor(u[:, 3] * w).astype(int) - side // 2
    for i in np.flatnonzero(u[:, 0] < probability).tolist():
        x[i, :, max(top[i], 0) : max(top[i] + side[i], 0), max(left[i], 0) : max(left[i] + side[i], 0)] = 0
    return x
