"""What becomes of damaged videos: clean ones are made, hurt in many ways, and read.

    python -m tests.damage          a table of 60 damaged files for each kind of file
    python -m tests.damage 6        of 6 for each

Each damaged file is refused, or its frames equal those of the clean one, or neither: then the damage went unnoticed,
since the decoder found a picture in what was left. docs/data.md has the table. A file that hangs or crashes the process
takes the command with it.
"""

import collections
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

from minnl.data import VideoError, read_video
from tests.videos import write_video

# Name of the file, encoder, and its options.
KINDS = (
    ("h264.mp4", "libx264", {}),
    ("h264.ts", "libx264", {"bf": 0}),
    ("h264.avi", "libx264", {"bf": 2}),
    ("hevc.mkv", "libx265", {"x265-params": "log-level=none:pools=none:frame-threads=1"}),
    ("mpeg4.avi", "mpeg4", {}),
    ("mpeg2.ts", "mpeg2video", {}),
    ("vp8.webm", "libvpx", {"b": 400_000}),
    ("vp9.webm", "libvpx-vp9", {"b": 400_000, "cpu-used": 8}),
    ("mjpeg.avi", "mjpeg", {}),
    ("ffv1.mkv", "ffv1", {"level": 3, "slicecrc": 1}),
)
FRAMES, HEIGHT, WIDTH = 24, 64, 96


def film(seed=0):
    """Squares that move over each other, with some noise: frames (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(0, 256, (12, 24, 3)), np.ones((8, 8, 1)))
    frames = [
        ground[k : k + HEIGHT, 3 * k : 3 * k + WIDTH] + rng.integers(-6, 7, (HEIGHT, WIDTH, 3)) for k in range(FRAMES)
    ]
    return np.clip(frames, 0, 255).astype(np.uint8)


def flip(data, rng, bits=1):
    for place in rng.integers(len(data), size=bits):
        data[place] ^= 1 << int(rng.integers(8))


def flips(data, rng):
    flip(data, rng, bits=10)


def garbage(data, rng, size=200):
    start = int(rng.integers(len(data) - size))
    data[start : start + size] = rng.bytes(size)


def zeros(data, rng, size=200):
    start = int(rng.integers(len(data) - size))
    data[start : start + size] = bytes(size)


def hole(data, rng, size=300):
    start = int(rng.integers(len(data) - size))
    del data[start : start + size]


def cut(data, rng):
    del data[int(len(data) * rng.uniform(0.2, 0.9)) :]


def joined(data, rng):
    data += bytes(data)


WAYS = (flip, flips, garbage, zeros, hole, cut, joined)


def clean(folder):
    """The clean files that this FFmpeg can write: {name: path}."""
    import av

    frames = film()
    return {
        name: write_video(folder / name, frames, 25, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p", **options)
        for name, codec, options in KINDS
        if codec in av.codecs_available
    }


def outcome(path, wanted):
    """refused, equal, fewer (frames of the clean video, some missing) or altered."""
    try:
        frames = read_video(path)
    except VideoError:
        return "refused"
    if np.array_equal(frames, wanted):
        return "equal"
    return "fewer" if len(frames) < len(wanted) else "altered"


def run(count, seed=0):
    """({(file, way): Counter of outcomes}, seconds that the slowest file took)."""
    found, slowest = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, path in clean(folder).items():
            good, data = read_video(path), path.read_bytes()
            for way in WAYS:
                rng = np.random.default_rng([seed, len(name), len(data)])
                tally = found[name, way.__name__] = collections.Counter()
                for _ in range(count if way is not joined else 1):
                    hurt = bytearray(data)
                    way(hurt, rng)
                    bad = folder / f"bad-{name}"
                    bad.write_bytes(hurt)
                    start = time.perf_counter()
                    tally[outcome(bad, np.concatenate([good, good]) if way is joined else good)] += 1
                    slowest = max(slowest, time.perf_counter() - start)
    return found, slowest


def main(count=60):
    found, slowest = run(count)
    names = ("refused", "equal", "altered", "fewer")
    print(f"{'':24}", *(f"{name:>9}" for name in names))
    for (file, way), tally in found.items():
        print(f"{file:12}{way:12}", *(f"{tally[name]:9}" for name in names))
    total = sum(found.values(), collections.Counter())
    print(f"{'all':24}", *(f"{total[name]:9}" for name in names))
    ways = {file: {way: tally for (name, way), tally in found.items() if name == file} for file, _ in found}
    print(json.dumps({"files": total.total(), "slowest": round(slowest, 3), "ways": ways}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
