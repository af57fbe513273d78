"""Which files of a folder are videos, and one warning about what is ignored, repeated, or in another set as well."""

import hashlib
import os
import warnings

EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv", ".gif", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv",
    ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".dv",
)  # fmt: skip
# What operating systems leave behind, beside names that begin with a dot.
LEFT_BEHIND = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
ENDS = 2**16  # bytes at the start and the end of a file that tell it from others of its size


def repeated(paths, others):
    """Those of some files that are among others too, going by their size, and then by their first and last 64 KiB."""
    sizes, found = {0: ()}, []  # empty files are alike, and no videos
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
    """What is in a folder, by name."""
    return sorted(os.scandir(path), key=lambda entry: entry.name)


def hidden(entry):
    """Whether an entry is none that a person put there to be seen."""
    return entry.name.startswith(".") or entry.name in LEFT_BEHIND


def folders(path):
    """Names of the folders in a folder."""
    return [entry.name for entry in entries(path) if entry.is_dir() and not hidden(entry)]


def walk(folder, above, ignored):
    """Paths of the videos in a folder and the folders in it; what is none goes to `ignored`.

    `above` has the folders that lead here: a link to one of them is not followed.
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
    """One warning about all of some files, folders or classes, if there are any."""
    if names:
        first = ", ".join(map(repr, names[:5]))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(f"{what} {first}{more}", RuntimeWarning)


def say_repeated(dataset):
    """Warn of files that are in a dataset more than once."""
    labels = {}
    for path, label in zip(dataset.paths, dataset.labels, strict=True):
        labels.setdefault(os.path.realpath(path), []).append(label)
    often = {path: found for path, found in labels.items() if len(found) > 1}
    where = f"{type(dataset).__name__}: listed more than once"
    say(f"{where}, as different classes:", [path for path, found in often.items() if len(set(found)) > 1])
    say(f"{where}:", [path for path, found in often.items() if len(set(found)) == 1])
