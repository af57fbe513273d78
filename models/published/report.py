"""What an import found, matched, left and took for granted: as an object, and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from minnl.checks import clean

SOME = 3  # names of a kind that the short text shows


@dataclass
class Report:
    """The whole account of an import.

    Attributes
    ----------
    file, kind, source : str
        The file, what kind it is, and whose network it is.
    preset, differs : str, dict of field -> value
        The preset that the network is nearest to, and the fields of models.Config in which it differs.
    hidden : dict of field -> (value, why)
        What no array shows, and where it was taken from.
    clip : (T, H, W, C)
    input : dict
        mean and deviation of the channels on the scale of 0 to 255, and the step between frames.
    parameters : int
    matched : list of (their name, our name, shape here)
    filled : list of (our name, why)
        Arrays that the file does not have and need not have.
    left : list of (their name, why)
    converted : list of (their name, what was done)
        Arrays that were not float32.
    """

    file: str
    kind: str
    source: str
    preset: str
    differs: dict
    hidden: dict
    clip: tuple
    input: dict
    parameters: int = 0
    matched: list = field(default_factory=list)
    filled: list = field(default_factory=list)
    left: list = field(default_factory=list)
    converted: list = field(default_factory=list)

    def plain(self):
        """As dict, list, str, int and float, as a checkpoint keeps it."""
        return plain(asdict(self))

    def text(self, names=False):
        """Lines for the reader; with `names`, every array of the file."""
        lines = [
            f"{self.file}: {self.kind}, network of {self.source}",
            f"network    {self.preset}, clips of {' x '.join(map(str, self.clip))}, {self.parameters:,} parameters",
        ]
        if self.differs:
            lines.append(f"differs    {', '.join(f'{k}={v!r}' for k, v in self.differs.items())}")
        lines.append("not in the shapes of the arrays, so make sure of it:")
        lines += [f"           {k}={v!r} ({why})" for k, (v, why) in self.hidden.items()]
        mean, deviation = (", ".join(f"{v:g}" for v in self.input[key]) for key in ("mean", "deviation"))
        what = {3: "RGB", 2: "optical flow"}.get(self.clip[3], f"{self.clip[3]} channels")
        lines.append(f"           input: {what} of 0 to 255, less {mean}, then divided by {deviation}")
        lines.append(f"           step from frame to frame: {self.input['stride']}")
        lines.append(f"matched    {len(self.matched)} arrays")
        lines += [f"           {clean(there)} -> {here} {shape}" for there, here, shape in self.matched if names]
        for title, entries in (("filled", self.filled), ("left", self.left), ("converted", self.converted)):
            lines += grouped(title, entries, names)
        return "\n".join(lines)


def grouped(title, entries, names):
    """Lines that tell the entries of a kind by what happened to them."""
    groups = {}
    for name, why in entries:
        groups.setdefault(clean(why), []).append(clean(name))
    lines = [f"{title:<10} {len(entries) or 'nothing'}"]
    for why, found in groups.items():
        if names:
            lines += [f"           {name}: {why}" for name in found]
        else:
            more = f" and {len(found) - SOME} more" if len(found) > SOME else ""
            lines.append(f"           {', '.join(found[:SOME])}{more}: {why}")
    return lines


def plain(value):
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
