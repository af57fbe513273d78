"""Checks of a file's container structure, for formats whose damage FFmpeg does not report.

=========  ============================================================================================================
format     check
=========  ============================================================================================================
Matroska   elements follow each other without gaps, if they have sizes; checksums are right, if there are any
           (FFmpeg writes them to .mkv, not to .webm)
MPEG-TS    packets of 188, 192 or 204 bytes, each with its sync byte, from the first byte to the last
AVI        chunks follow each other without gaps up to the index
MP4, MOV,  the file is a single film: FFmpeg reads only the first of several films that are joined end to end
FLV, WMV
=========  ============================================================================================================
"""

import os
import re
import zlib

import numpy as np

EBML, SEGMENT, CLUSTER, TRACKS, VOID = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0xEC
# The elements of a segment: cluster, tracks, void, SeekHead, Info, Cues, Chapters, Tags, Attachments, CRC-32.
INSIDE = {CLUSTER, TRACKS, VOID, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469, 0xBF}
IN_CLUSTER = {0xE7, 0xA0, 0xA3, 0xA7, 0xAB, 0x5854, VOID, 0xBF}  # the elements of a cluster, such as times and blocks
CHUNK = re.compile(rb"[0-9A-Fa-f]{2}(dc|db|wb|tx|pc|iv)|ix[0-9A-Fa-f]{2}|[A-Za-z]{3}[A-Za-z0-9 ]")  # AVI chunk names
JOINED = "holds several films joined end to end, of which only the first could be read"


def fault(file, format_name):
    """The damage of an open file in one of FFmpeg's formats, as text, or None if the check finds none."""
    check = next((check for name, check in CHECKS if name in format_name), None)
    if check is None:
        return None
    position = file.tell()
    try:
        return check(file, file.seek(0, os.SEEK_END))
    finally:
        file.seek(position)  # FFmpeg reads on from here


def _matroska(file, size):
    """Check the top level: a header and a segment, and more of these if files were joined."""
    at, known = 0, False
    while at < size:
        name, start, end = _element(file, at)
        if name not in (EBML, SEGMENT, VOID):
            return None if known else f"damaged: no element begins at byte {at}"  # bytes after the segment are ignored
        if name == SEGMENT:
            known, at = True, start
            while at < min(size if end is None else end, size):
                name, start, after = _element(file, at)
                if name not in INSIDE:
                    return None if name == EBML else f"damaged: no element begins at byte {at}"
                if after is None:
                    return None  # a live recording does not know its sizes when it is written
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
    """The damage inside an element of the top level, as text, or None."""
    file.seek(start)
    if name in (CLUSTER, TRACKS) and file.read(2) == b"\xbf\x84":  # the checksum of all that follows
        wanted = int.from_bytes(file.read(4), "little")
        if zlib.crc32(_read(file, end - file.tell())) != wanted:
            return f"damaged: bytes {start} to {end} differ from their checksum"
    at = start
    while name == CLUSTER and at < end:
        inner, _, at = _element(file, at)
        if inner not in IN_CLUSTER or at is None or at > end:
            return f"damaged: bytes {start} to {end} are not a sequence of frames"
    return None


def _element(file, at):
    """(ID, start of the content, end of the content or None) of the EBML element at byte `at`."""
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
    """`count` bytes of an unbuffered file, whose read may return fewer."""
    content = bytearray()
    while len(content) < count and (piece := file.read(count - len(content))):
        content += piece
    return content


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
    while packets := _read(file, step * 2**15):
        sync = np.frombuffer(packets, np.uint8)[first::step]
        if (sync != 0x47).any():
            return f"damaged: no packet begins at byte {at + step * int(np.argmax(sync != 0x47))}"
        at += len(packets)
    return f"cut short: its last packet has {at % step} of {step} bytes" if at % step else None


def _avi(file, size):
    """Check the chunks. The check ignores the sizes of lists, which some writers leave at 0, and enters every list."""
    at, name, odd = 0, b"", 0
    while at + 8 <= size and name != b"idx1":
        file.seek(at)
        head = file.read(9)
        # A padding byte makes an odd length even, but some writers leave it out.
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


def _repeated_header(file, size):
    """Search the file for a second copy of its first bytes, the header of its format."""
    file.seek(0)
    head = _read(file, 13)
    window = b""
    while content := file.read(2**20):
        window = window[-len(head) :] + content
        if head in window:
            return JOINED
    return None


CHECKS = (
    ("matroska", _matroska), ("mpegts", _transport), ("avi", _avi), ("mp4", _mp4), ("flv", _repeated_header),
    ("asf", _repeated_header),
)  # fmt: skip
