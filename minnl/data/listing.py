"""The videos of a folder, and warnings about files that are ignored, repeated, or in another split too."""

import hashlib
import os
import warnings

EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv", ".gif", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv",
    ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".dv",
)  # fmt: skip
# Folders of operating systems and archive programs whose names do not begin with a dot.
LEFT_BEHIND = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
ENDS = 2**16  # two files are the same if their sizes and this many bytes at the start and at the end are equal


def repeated(paths, others):
    """The files of `paths` that are among `others` too, by size and by their first and last 64 KiB."""
    sizes, found = {0: ()}, []  # empty files are equal, but they are not videos
    for path in filter(os.path.isfile, others):
        size = os.path.getsize(path)
        sizes[size] = (*sizes.get(size, ()), path) if size else ()
    for path in filter(os.path.isfile, paths):
        alike = sizes.get(os.path.getsize(path), ())
        if alike and _ends(path) in map(_ends, alike):
            found.append(path)
    return found


def _ends(path):
    with open(path, "rb") as file:
        start = file.read(ENDS)
        file.seek(max(os.path.getsize(path) - ENDS, 0))
        return hashlib.sha256(start + file.read(ENDS)).digest()


def entries(path):
    """The entries of a folder, sorted by name."""
    return sorted(os.scandir(path), key=lambda entry: entry.name)


def hidden(entry):
    """Whether an entry is hidden, or a folder of an operating system."""
    return entry.name.startswith(".") or entry.name in LEFT_BEHIND


def folders(path):
    """The names of the visible folders in a folder."""
    return [entry.name for entry in entries(path) if entry.is_dir() and not hidden(entry)]


def walk(folder, above, ignored):
    """The paths of the videos in a folder and its subfolders; all other files are appended to `ignored`.

    `above` is the set of folders on the way here: links to these are not followed.
    """
    found = []
    for entry in entries(folder):
        real = os.path.realpath(entry.path) if entry.is_dir() else None
        if hidden(entry):
            ignored.append(entry.path)
        elif real and real not in above:
            found += walk(entry.path, above | {real}, ignored)
        elif not real and entry.name.lower().endswith(EXTENSIONS):
            found.append(entry.path)
        else:
            ignored.append(entry.path)
    return found


def say(what, names):
    """One warning that names files, folders or classes; no warning if `names` is empty."""
    if names:
        first = ", ".join(map(repr, names[:5]))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(f"{what} {first}{more}", RuntimeWarning)


def say_repeated(dataset):
    """Warn about files that a dataset lists more than once."""
    labels = {}
    for path, label in zip(dataset.paths, dataset.labels, strict=True):
        labels.setdefault(os.path.realpath(path), []).append(label)
    often = {path: found for path, found in labels.items() if len(found) > 1}
    where = f"{type(dataset).__name__}: listed more than once"
    say(f"{where}, as different classes:", [path for path, found in often.items() if len(set(found)) > 1])
    say(f"{where}:", [path for path, found in often.items() if len(set(found)) == 1])
