"""Which frames make a clip, and what is done to them, against the formulas."""

import numpy as np
import pytest

from minnl.data import transforms


def generator(seed=0):
    return np.random.default_rng(seed)


# Which frames


def test_evenly_spaced_clips_of_the_paper():
    starts = transforms.even_starts(300, 10)
    assert starts == list(range(0, 300, 30))
    last = transforms.clip_indices(300, 32, 2, starts[-1])
    assert last.tolist() == [*range(270, 300, 2), *range(0, 34, 2)]


def test_random_starts_reach_both_ends_and_no_further():
    drawn = {transforms.random_start(40, 16, 2, rng) for rng in [generator()] for _ in range(300)}
    assert drawn == set(range(9))


@pytest.mark.parametrize("length", [1, 5, 16, 31, 32])
def test_a_short_video_starts_at_its_beginning_and_goes_round(length):
    assert transforms.random_start(length, 16, 2, generator()) == transforms.center_start(length, 16, 2) == 0
    assert transforms.clip_indices(length, 16, 2, 0).tolist() == [2 * k % length for k in range(16)]


def test_the_middle_clip_lies_in_the_middle():
    assert transforms.center_start(100, 16, 2) == 34


@pytest.mark.parametrize("bad", [(0, 1, 1, 0), (5, 0, 1, 0), (5, 1, 0, 0), (5, 1, 1, -1)])
def test_clip_indices_refuses(bad):
    with pytest.raises(ValueError, match="clip_indices"):
        transforms.clip_indices(*bad)


# Scaling and cutting


def resize_by_formula(picture, height, width):
    old_h, old_w, channels = picture.shape
    out = np.zeros((height, width, channels))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * old_h / height - 0.5, 0), old_h - 1)
            x = min(max((j + 0.5) * old_w / width - 0.5, 0), old_w - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, old_h - 1), min(left + 1, old_w - 1)
            a, b = y - top, x - left
            out[i, j] = (1 - a) * ((1 - b) * picture[top, left] + b * picture[top, right]) + a * (
                (1 - b) * picture[bottom, left] + b * picture[bottom, right]
            )
    return out


@pytest.mark.parametrize("size", [(7, 9), (5, 4), (20, 3), (1, 1), (7, 18)])
def test_resize_is_bilinear(size):
    frames = generator().random((2, 7, 9, 3), dtype=np.float32)
    scaled = transforms.resize(frames, size)
    assert scaled.dtype == np.float32
    for got, picture in zip(scaled, frames, strict=True):
        np.testing.assert_allclose(got, resize_by_formula(picture, *size), atol=1e-5)


def test_resize_rounds_bytes():
    frames = generator().integers(0, 256, (3, 37, 53, 3), dtype=np.uint8)
    scaled = transforms.resize(frames, (24, 80))
    assert scaled.dtype == np.uint8
    np.testing.assert_array_equal(scaled, np.rint(transforms.resize(frames.astype(np.float32), (24, 80))))


def test_resize_to_the_same_size_copies_nothing_and_refuses_other_types():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert transforms.resize(frames, (4, 4)) is frames
    with pytest.raises(TypeError, match="float64"):
        transforms.resize(frames.astype(float), (2, 2))
    with pytest.raises(ValueError, match="resize"):
        transforms.resize(frames[:, :0], (2, 2))
    with pytest.raises(ValueError, match="resize: size"):
        transforms.resize(frames, (0, 2))


def test_scaled_sizes_are_truncated():
    assert transforms.short_side_size(240, 321, 256) == (256, 342)
    assert transforms.short_side_size(321, 240, 256) == (342, 256)
    assert transforms.cover_size(240, 320, (112, 112)) == (112, 149)
    assert transforms.cover_size(96, 70, (112, 112)) == (153, 112)
    for height, width, size in [(96, 70, (64, 80)), (70, 96, (64, 80)), (272, 640, (112, 112)), (3, 1000, (7, 5))]:
        covered = transforms.cover_size(height, width, size)
        assert covered[0] >= size[0]
        assert covered[1] >= size[1]
        assert transforms.cover_size(*covered, size) == covered


def test_three_crops_of_the_paper():
    columns = np.broadcast_to(np.arange(340)[:, None], (1, 256, 340, 1))
    assert [crop[0, 0, 0, 0] for crop in transforms.three_crops(columns)] == [0, 42, 84]
    assert all(crop.shape == (1, 256, 256, 1) for crop in transforms.three_crops(columns))
    odd = np.broadcast_to(np.arange(341)[:, None], (1, 256, 341, 1))
    assert [crop[0, 0, 0, 0] for crop in transforms.three_crops(odd)] == [0, 42, 84], "rounded down"
    rows = np.swapaxes(columns, 1, 2)
    assert [crop[0, 0, 0, 0] for crop in transforms.three_crops(rows)] == [0, 42, 84]


def test_crops_reach_every_place_and_do_not_leave_the_frame():
    frames = np.arange(4 * 5).reshape(1, 4, 5, 1)
    corners = {
        int(transforms.random_crop(frames, (3, 3), rng)[0, 0, 0, 0]) for rng in [generator()] for _ in range(200)
    }
    assert corners == {0, 1, 2, 5, 6, 7}
    assert transforms.center_crop(frames, (2, 3))[0, 0, 0, 0] == 6
    for crop in (
        lambda: transforms.center_crop(frames, (5, 5)),
        lambda: transforms.random_crop(frames, (3, 6), generator()),
    ):
        with pytest.raises(ValueError, match="does not fit frames of 4 x 5"):
            crop()


def test_flip_differences_and_normalize():
    frames = generator().integers(0, 256, (4, 2, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(transforms.horizontal_flip(frames)[:, :, 0], frames[:, :, 2])
    values = transforms.normalize(frames)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, (frames.astype(float) - 114.75) / 57.375, rtol=1e-6)
    mean, deviation = np.float32([10, 20, 30]), np.float32([1, 2, 4])
    other = transforms.normalize(frames, mean, deviation)
    assert other.dtype == np.float32
    np.testing.assert_array_equal(other[..., 2], (frames[..., 2] - np.float32(30)) / 4)
    np.testing.assert_array_equal(transforms.differences(values), values[1:] - values[:-1])
    with pytest.raises(TypeError, match="uint8"):
        transforms.differences(frames)


def test_spread_indices_are_the_middles_of_equal_parts():
    assert transforms.spread_indices(16, 4).tolist() == [2, 6, 10, 14]
    assert transforms.spread_indices(7, 3).tolist() == [int((i + 0.5) * 7 / 3) for i in range(3)]
    assert transforms.spread_indices(1, 3).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="spread_indices: length"):
        transforms.spread_indices(0, 3)
