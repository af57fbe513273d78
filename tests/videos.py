"""Small video files for the tests, and where the real ones are."""

import os
import pathlib

import numpy as np
import pytest

from tests import ROOT

SHARED = pathlib.Path(os.environ.get("MINNL_DATA", ROOT.parent / "shared" / "data"))


def write_video(
    path, frames, rate=30, codec="libx264rgb", pix_fmt="rgb24", times=None, format=None, sound=None, **options
):
    """Frames (T, H, W, 3) to a file, or skip the test.

    `times` are presentation times in units of 1 / rate; `sound` is the encoder of three seconds of silence.
    """
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        if pix_fmt == "gray":
            stream.codec_context.color_range = av.video.reformatter.ColorRange.JPEG
        silence = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = k if times is None else times[k]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 3 * 48000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48000, 0
            size = silence.codec_context.frame_size or 1024
            cut = av.AudioResampler(format=silence.format, layout="mono", rate=48000, frame_size=size)
            for part in (*cut.resample(frame), *cut.resample(None)):
                container.mux(silence.encode(part))
            container.mux(silence.encode())
    return path


def numbered(count, height=32, width=48):
    """Frames whose grey level tells their position: five steps a frame."""
    levels = (5 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def level(frames):
    """Positions of numbered frames."""
    return frames.mean((1, 2, 3)).round().astype(int) // 5
