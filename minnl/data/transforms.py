"""The frames of a clip and their transforms: pure functions on arrays.

Frames are arrays of shape (T, H, W, C); any number of axes may come before H. Random choices come from a
`numpy.random.Generator` argument, so the same generator gives the same clip. The numbers (start of a clip, truncated
sizes, crops, mean and std) are those of the authors' release of *Non-local Neural Networks*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minnl import checks
from minnl.backend import Array

MEAN = 114.75  # the mean of all channels in the authors' release, on the scale of 0 to 255
DEVIATION = 57.375  # the std of all channels in the authors' release, on the scale of 0 to 255


def clip_indices(length: int, frames: int, stride: int, start: int) -> Array:
    """Positions of the frames of one clip: ``start, start + stride, ...``, wrapping around at the video's end.

    Parameters
    ----------
    length : int
        Frames in the video, 1 or more.
    frames, stride : int
        Frames of the clip, and the step between them.
    start : int
        Position of the first frame.

    Returns
    -------
    indices : int64 ndarray of shape (frames,)

    Raises
    ------
    ValueError
        If length, frames or stride is below 1, or start is negative.
    """
    checks.count("clip_indices", "length", length, 1)
    checks.count("clip_indices", "frames", frames, 1)
    checks.count("clip_indices", "stride", stride, 1)
    checks.count("clip_indices", "start", start, 0)
    return (start + stride * np.arange(frames, dtype=np.int64)) % length


def spread_indices(length: int, frames: int) -> Array:
    """Positions of frames spread evenly over a whole video: the middles of `frames` equal sections.

    Returns an int64 ndarray of shape (frames,); positions repeat if the video has fewer frames.
    """
    length, frames = (checks.count("spread_indices", n, v, 1) for n, v in (("length", length), ("frames", frames)))
    return (2 * np.arange(frames, dtype=np.int64) + 1) * length // (2 * frames)


def random_start(length: int, frames: int, stride: int, rng: np.random.Generator) -> int:
    """A start drawn uniformly from 0 to ``length - frames * stride``, both included; 0 if the video is shorter."""
    return int(rng.integers(max(length - frames * stride, 0), endpoint=True))


def center_start(length: int, frames: int, stride: int) -> int:
    """The start that puts a clip in the middle of its video; 0 if the video is shorter."""
    return max(length - frames * stride, 0) // 2


def even_starts(length: int, clips: int = 10) -> list[int]:
    """The starts of `clips` clips spread evenly over the video: ``int(j * length / clips)``, as a list."""
    return [j * length // checks.count("even_starts", "clips", clips, 1) for j in range(clips)]


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter side is `short_side`; the longer side is truncated to an int."""
    if height <= width:
        return short_side, width * short_side // height
    return height * short_side // width, short_side


def cover_size(height: int, width: int, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) scaled by one factor so that the frame just covers `size`, a (height, width)."""
    if size[0] * width >= size[1] * height:
        return size[0], width * size[0] // height
    return height * size[1] // width, size[1]


def resize(frames: Array, size: Sequence[int]) -> Array:
    """Scale frames by bilinear interpolation.

    Along each axis, output pixel i has its centre at input position ``(i + 1/2) * old / new - 1/2`` and interpolates
    the two nearest input pixels (cv2's INTER_LINEAR, PyTorch's ``align_corners=False``). Downscaling does not average
    first.

    Parameters
    ----------
    frames : uint8 or float32 ndarray of shape (..., H, W, C)
    size : (int, int)
        New height and width.

    Returns
    -------
    scaled : ndarray of shape (..., *size, C) and the same dtype, uint8 rounded
        `frames` itself if it has this size already.

    Raises
    ------
    TypeError
        If frames have another dtype.
    ValueError
        If frames have no pixels.
    """
    height, width = checks.pair("resize", "size", size)
    if frames.dtype not in (np.uint8, np.float32):
        raise TypeError(f"resize: frames must be uint8 or float32, got {frames.dtype}")
    if frames.ndim < 3 or 0 in frames.shape[-3:-1]:
        raise ValueError(f"resize: frames must be (..., H, W, C) with H and W at least 1, got shape {frames.shape}")
    if frames.shape[-3:-1] == (height, width):
        return frames
    up, down, row = _taps(frames.shape[-3], height)
    left, right, column = _taps(frames.shape[-2], width)
    scaled = np.empty((*frames.shape[:-3], height, width, frames.shape[-1]), frames.dtype)
    # The loop is over single frames, so that the intermediate arrays fit the cache.
    for where in np.ndindex(frames.shape[:-3]):
        picture = frames[where]
        picture = _between(picture[up], picture[down], row[:, None, None])
        picture = _between(picture[:, left], picture[:, right], column[:, None])
        scaled[where] = np.rint(picture) if frames.dtype == np.uint8 else picture
    return scaled


def _taps(old, new):
    """For `new` pixels on a line of `old` pixels: the pixel before, the pixel after, and the weight of the latter."""
    position = (np.arange(new, dtype=np.float32) + 0.5) * (old / new) - 0.5
    position = position.clip(0, old - 1)
    before = position.astype(np.int64)
    return before, np.minimum(before + 1, old - 1), position - before.astype(np.float32)


def _between(a, b, share):
    a = a.astype(np.float32)
    return a + (b - a) * share


def random_crop(frames: Array, size: Sequence[int], rng: np.random.Generator) -> Array:
    """A random crop of `size` (height, width) of (..., H, W, C), the same in all frames. Returns a view."""
    rows, columns = _margins("random_crop", frames, size)
    return _cut(frames, int(rng.integers(rows, endpoint=True)), int(rng.integers(columns, endpoint=True)), size)


def center_crop(frames: Array, size: Sequence[int]) -> Array:
    """The crop of `size` (height, width) in the middle of (..., H, W, C). Returns a view."""
    rows, columns = _margins("center_crop", frames, size)
    return _cut(frames, rows // 2, columns // 2, size)


def three_crops(frames: Array) -> list[Array]:
    """Three squares that cover frames along their longer side.

    Parameters
    ----------
    frames : ndarray of shape (..., H, W, C)

    Returns
    -------
    crops : list of 3 views of shape (..., S, S, C), S = min(H, W)
        At 0, d and 2 d along the longer side, ``d = (max(H, W) - S) // 2``: 0, 42 and 84 for 256 x 340.
    """
    height, width = frames.shape[-3:-1]
    side = min(height, width)
    rows, columns = (height - side) // 2, (width - side) // 2
    return [_cut(frames, k * rows, k * columns, (side, side)) for k in range(3)]


def _margins(where, frames, size):
    height, width = frames.shape[-3:-1]
    if size[0] > height or size[1] > width:
        raise ValueError(
            f"{where}: a crop of {size[0]} x {size[1]} does not fit frames of {height} x {width}; "
            "scale them up first (resize), or ask for a smaller crop"
        )
    return height - size[0], width - size[1]


def _cut(frames, top, left, size):
    return frames[..., top : top + size[0], left : left + size[1], :]


def horizontal_flip(frames: Array) -> Array:
    """Mirror (..., H, W, C) left to right. Returns a view."""
    return frames[..., ::-1, :]


def differences(frames: Array) -> Array:
    """The differences of consecutive frames: (T, H, W, C) -> (T - 1, H, W, C), float32.

    Raises TypeError for frames that are not float32, since uint8 would wrap around at 0.
    """
    if frames.dtype != np.float32:
        raise TypeError(f"differences: frames must be float32, got {frames.dtype}; normalize them first")
    return frames[1:] - frames[:-1]


def normalize(frames: Array, mean: float | Array = MEAN, deviation: float | Array = DEVIATION) -> Array:
    """``(v - mean) / deviation`` as float32, for v from 0 to 255. Both are numbers, or float32 arrays per channel."""
    return (frames.astype(np.float32) - mean) / deviation
