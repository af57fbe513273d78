"""Whether a file's own structure accounts for its bytes: for formats whose damage FFmpeg passes over in silence.

=========  ============================================================================================================
format     looked at
=========  ============================================================================================================
Matroska   elements follow each other without gaps, as far as they announce their sizes; checksums, where there are any
           (FFmpeg writes them to .mkv, not to .webm)
MPEG-TS    packets of 188, 192 or 204 bytes, each with its mark, from the first byte to the last
AVI        chunks follow each other without gaps up to the index
MP4, MOV,  one film only: of files joined end to end FFmpeg reads the first
FLV, WMV
=========  ============================================================================================================
"""

import os
import re
import zlib

import numpy as np

EBML, SEGMENT, CLUSTER, TRACKS, VOID = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0xEC
# What a segment may hold: these three, SeekHead, Info, Cues, Chapters, Tags, Attachments, CRC-32.
INSIDE = {CLUSTER, TRACKS, VOID, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469, 0xBF}
IN_CLUSTER = {0xE7, 0xA0, 0xA3, 0xA7, 0xAB, 0x5854, VOID, 0xBF}  # times, blocks and the like
CHUNK = re.compile(rb"[0-9A-Fa-f]{2}(dc|db|wb|tx|pc|iv)|ix[0-9A-Fa-f]{2}|[A-Za-z]{3}[A-Za-z0-9 ]")  # in an AVI file
JOINED = "holds several films joined end to end, of which only the first could be read"


def fault(file, kind):
    """What is wrong with an open file of FFmpeg's format `kind`, or None where nothing is found."""
    look = next((look for part, look in LOOKS if part in kind), None)
    if look is None:
        return None
    place = file.tell()
    try:
        return look(file, file.seek(0, os.SEEK_END))
    finally:
        file.seek(place)  # where FFmpeg left it


def _matroska(file, size):
    """Top level: header, segment, and perhaps more of these, where files were joined."""
    at, known = 0, False
    while at < size:
        name, start, end = _element(file, at)
        if name not in (EBML, SEGMENT, VOID):
            return None if known else f"damaged: no element begins at byte {at}"  # behind all, it may be anything
        if name == SEGMENT:
            known, at = True, start
            while at < min(size if end is None else end, size):
                name, start, after = _element(file, at)
                if name not in INSIDE:
                    return None if name == EBML else f"damaged: no element begins at byte {at}"
                if after is None:
                    return None  # a live recording: sizes were not known when it was written
                if after > size:
                    return f"cut short: {after - size} bytes are missing at its end"
                wrong = _content(file, name, start, after)
                if wrong:
                    return wrong
                at = after
        if end is None:
            return None
        at = end
    return f"cut short: {at - size} bytes are missing at its end" if at > size else None


def _content(file, name, start, end):
    """What is wrong within an element of the top level."""
    file.seek(start)
    if name in (CLUSTER, TRACKS) and file.read(2) == b"\xbf\x84":  # the checksum of all that follows
        wanted = int.from_bytes(file.read(4), "little")
        if zlib.crc32(_read(file, end - file.tell())) != wanted:
            return f"damaged: bytes {start} to {end} differ from their checksum"
    at = start
    while name == CLUSTER and at < end:
        inner, _, at = _element(file, at)
        if inner not in IN_CLUSTER or at is None or at > end:
            return f"damaged: bytes {start} to {end} are no row of frames"
    return None


def _element(file, at):
    """(ID, where its content begins, where that ends or None) of the EBML element at a place."""
    file.seek(at)
    head = file.read(12)
    if not head or not head[0]:
        return None, at, None
    width = 9 - head[0].bit_length()
    name, head = int.from_bytes(head[:width], "big"), head[width:]
    if not head or not head[0]:
        return None, at, None
    count = 9 - head[0].bit_length()
    length, unknown = int.from_bytes(head[:count], "big") & (1 << 7 * count) - 1, (1 << 7 * count) - 1
    start = at + width + count
    return name, start, None if length == unknown else start + length


def _read(file, count):
    """`count` bytes, of an unbuffered file, which may give fewer at once."""
    parts = bytearray()
    while len(parts) < count and (part := file.read(count - len(parts))):
        parts += part
    return parts


def _transport(file, size):
    file.seek(0)
    head = np.frombuffer(_read(file, min(size, 5 * 204)), np.uint8)
    steps = [(188, 0), (192, 4), (204, 0)]
    found = [(step, first) for step, first in steps if (head[first::step] == 0x47).all()]
    if not found:
        return "damaged: packets of a transport stream must begin at its first byte"
    step, first = found[0]
    file.seek(0)
    at = 0
    while part := _read(file, step * 2**15):
        marks = np.frombuffer(part, np.uint8)[first::step]
        if (marks != 0x47).any():
            return f"damaged: no packet begins at byte {at + step * int(np.argmax(marks != 0x47))}"
        at += len(part)
    return f"cut short: its last packet has {at % step} of {step} bytes" if at % step else None


def _avi(file, size):
    """Lists are entered, whatever their size says: some writers leave that at 0."""
    at, name, odd = 0, b"", 0
    while at + 8 <= size and name != b"idx1":
        file.seek(at)
        head = file.read(9)
        # A byte more makes an odd length even, but some writers leave it out.
        skip = next((skip for skip in (odd, 0) if CHUNK.match(head, skip)), None)
        if skip is None:
            return f"damaged: no chunk begins at byte {at}"
        name, length = head[skip : skip + 4], int.from_bytes(head[skip + 4 : skip + 8], "little")
        at += skip + (12 if name in (b"RIFF", b"LIST") else 8 + length)
        odd = length % 2 if name not in (b"RIFF", b"LIST") else 0
    return f"cut short: {at - size} bytes are missing at its end" if at > size else None


def _mp4(file, size):
    boxes, at = [], 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        length = int.from_bytes(head[8:], "big") if length == 1 else length or size - at
        boxes.append(name)
        if length < 8:
            break
        at += length
    return JOINED if boxes.count(b"moov") > 1 and b"moof" not in boxes else None


def _begun_again(file, size):
    """Look for the first bytes of the file, which are those of its format, further behind."""
    file.seek(0)
    head = _read(file, 13)
    seen = b""
    while part := file.read(2**20):
        seen = seen[-len(head) :] + part
        if head in seen:
            return JOINED
    return None


LOOKS = (
    ("matroska", _matroska), ("mpegts", _transport), ("avi", _avi), ("mp4", _mp4), ("flv", _begun_again),
    ("asf", _begun_again),
)  # fmt: skip
