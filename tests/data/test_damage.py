"""Damaged videos are refused as far as docs/data.md promises, and none hangs or crashes the process."""

import collections
import errno
import json
import subprocess
import sys
import zlib

import pytest

from minnl.data import decoder, structure
from tests.videos import numbered, write_video

# What may go unnoticed: a decoder makes a picture of almost any bytes. Where there are checksums, nothing may; a
# transport stream shows damage as long as one of its packets.
BITS = {"flip", "flips", "garbage", "zeros"}
UNNOTICED = {".mkv": set(), ".ts": {"flip", "flips"}, ".mp4": BITS, ".avi": BITS, ".webm": BITS}


@pytest.mark.slow
def test_what_becomes_of_damaged_videos():
    pytest.importorskip("av")
    command = [sys.executable, "-m", "tests.damage", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["ways"]) >= 5 and found["files"] == 31 * len(found["ways"])
    assert found["slowest"] < 10
    total = collections.Counter()
    for name, ways in found["ways"].items():
        passed = {way for way, tally in ways.items() if tally.get("altered") or tally.get("fewer")}
        assert passed <= UNNOTICED[name[name.index(".") :]], (name, ways)
        for tally in ways.values():
            total.update(tally)
    differ = total["altered"] + total["fewer"]
    assert total["refused"] / (total["refused"] + differ) > 0.8, "docs/data.md: 87 % of many more"
    assert found["ways"]["h264.ts"]["joined"] == {"equal": 1}


# What the structure of a file says, each rule by itself


def element(name, *parts, size=None):
    """An EBML element with a size of eight bytes."""
    content = b"".join(parts)
    return bytes.fromhex(name) + ((1 << 56) | (len(content) if size is None else size)).to_bytes(8, "big") + content


HEADER, UNKNOWN = element("1A45DFA3", b"x"), (1 << 56) - 1
BLOCKS = element("E7", b"\0"), element("A3", b"12345678")


def checked(*parts):
    """What elements are after their checksum, which has a size of one byte."""
    content = b"".join(parts)
    return b"\xbf\x84" + zlib.crc32(content).to_bytes(4, "little") + content


MATROSKA = [
    (HEADER + element("18538067", element("1F43B675", *BLOCKS)), None),
    (HEADER + element("18538067", element("1F43B675", checked(*BLOCKS))), None),
    (HEADER + element("18538067", element("1F43B675", checked(*BLOCKS).replace(b"345", b"3x5"))), "their checksum"),
    (HEADER + element("18538067", element("1F43B675", BLOCKS[0], b"\x55" * 9)), "not a sequence of frames"),
    (HEADER + element("18538067", element("1F43B675", *BLOCKS), b"\x55" * 9), "no element begins at byte"),
    (HEADER + element("18538066", element("1F43B675", *BLOCKS)), "no element begins at byte 13"),
    (HEADER + element("18538067", element("1F43B675", *BLOCKS))[:-3], "3 bytes are missing"),
    (HEADER + element("18538067", element("1F43B675", *BLOCKS), size=UNKNOWN), None),
    (HEADER + element("18538067", element("1F43B675", *BLOCKS, size=UNKNOWN), size=UNKNOWN), None),
    (2 * (HEADER + element("18538067", element("1F43B675", *BLOCKS))), None),
    (HEADER + element("18538067", element("1F43B675", *BLOCKS)) + b"anything", None),
]


def chunk(name, content, pad=b"\0"):
    return name + len(content).to_bytes(4, "little") + content + pad * (len(content) % 2)


def avi(*chunks, size=0):
    start = b"RIFF" + size.to_bytes(4, "little") + b"AVI LIST" + size.to_bytes(4, "little") + b"movi"
    return start + b"".join(chunks)


AVI = [
    (avi(chunk(b"00dc", b"123"), chunk(b"01wb", b"12")) + chunk(b"idx1", b"1234"), None),
    (avi(chunk(b"00dc", b"123", b"")) + chunk(b"idx1", b"1234"), None),  # without the byte that makes a length even
    (avi(chunk(b"00dc", b"123", b"Z")) + chunk(b"idx1", b"1234"), None),
    (avi(chunk(b"00dc", b"123"), size=7) + chunk(b"idx1", b"1234") + b"anything", None),
    (avi(chunk(b"00dc", b"123")) + b"\xff" * 9, "no chunk begins at byte 35"),
    (avi(chunk(b"00dc", b"1234"))[:-1], "1 bytes are missing"),
]
PACKET = b"\x47" + bytes(187)
TRANSPORT = [
    (5 * PACKET, None),
    (5 * (bytes(4) + PACKET), None),
    (5 * (PACKET + bytes(16)), None),
    (5 * PACKET + PACKET[:100], "its last packet has 100 of 188 bytes"),
    (9 * PACKET + bytes(188) + PACKET, "no packet begins at byte 1692"),
    (b"\0" + 5 * PACKET, "must begin at its first byte"),
]


def box(name, content=b""):
    return (8 + len(content)).to_bytes(4, "big") + name + content


MP4 = [
    (box(b"ftyp") + box(b"mdat", b"123") + box(b"moov"), None),
    (2 * (box(b"ftyp") + box(b"mdat", b"123") + box(b"moov")), "several films"),
    (2 * (box(b"ftyp") + box(b"moov") + box(b"moof")), None),  # FFmpeg reads all fragments
    (box(b"moov") + bytes(4) + b"mdat" + box(b"moov"), None),  # a size of 0: to the end
    (box(b"moov") + b"\0\0\0\1mdat" + (24).to_bytes(8, "big") + bytes(8) + box(b"moov"), "several films"),
]
CASES = [
    (kind, *case)
    for kind, cases in (("matroska,webm", MATROSKA), ("avi", AVI), ("mpegts", TRANSPORT), ("mov,mp4,m4a", MP4))
    for case in cases
]


@pytest.mark.parametrize(("kind", "data", "wanted"), CASES, ids=[f"{k}-{case[0]}" for k, case in enumerate(CASES)])
def test_the_structure_of_a_file(tmp_path, kind, data, wanted):
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb", buffering=0) as file:
        file.seek(5)
        found = structure.fault(file, kind)
        assert file.tell() == 5, "FFmpeg reads on from where it was"
    assert found is None if wanted is None else wanted in found


def test_a_seek_before_the_file_is_an_error_by_number(tmp_path):
    """PyAV prints what it cannot raise."""
    path = write_video(tmp_path / "a.mp4", numbered(2), qp=0)
    source = decoder._Source(path)
    assert source.seek(-1) == -errno.EINVAL
    assert source.seek(3) == 3
    source.close()
