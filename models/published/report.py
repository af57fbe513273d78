"""What an import found, matched, left and took for granted: as an object, and as text."""

from __future__ import annotations

from dataclasses import dataclass

from minnl.checks import clean

EXAMPLES = 3  # The number of names that the short text has for each reason.


@dataclass
class Report:
    """The whole account of an import."""

    file: str
    container: str  # The format of the file.
    source: str  # The project whose network it is.
    preset: str  # The preset that the network is nearest to,
    differs: dict  # and field of models.Config -> value, where the network differs from it.
    hidden: dict  # Field of models.Config -> (value, why), for the fields that no array shows.
    clip: tuple  # (T, H, W, C)
    input: dict  # Mean and deviation of the channels on the scale of 0 to 255, and the step between frames.
    parameters: int
    matched: list  # Of (their name, our name, shape here).
    filled: list  # Of (our name, why), for arrays that the file does not have and need not have.
    left: list  # Of (their name, why).
    converted: list  # Of (their name, what was done), for arrays that were not float32.

    def text(self, names=False):
        """The report as lines for the reader; with `names`, every array of the file."""
        mean, deviation = (", ".join(f"{v:g}" for v in self.input[key]) for key in ("mean", "deviation"))
        channels = {3: "RGB", 2: "optical flow"}.get(self.clip[3], f"{self.clip[3]} channels")
        differs = ", ".join(f"{k}={v!r}" for k, v in self.differs.items())
        lines = [
            f"{self.file}: {self.container}, network of {self.source}",
            f"network    {self.preset}, clips of {' x '.join(map(str, self.clip))}, {self.parameters:,} parameters",
            *([f"differs    {differs}"] if differs else []),
            "not in the shapes of the arrays, so make sure of it:",
            *(f"           {k}={v!r} ({why})" for k, (v, why) in self.hidden.items()),
            f"           input: {channels} of 0 to 255, less {mean}, then divided by {deviation}",
            f"           step from frame to frame: {self.input['stride']}",
            f"matched    {len(self.matched)} arrays",
            *(f"           {clean(there)} -> {here} {shape}" for there, here, shape in self.matched if names),
        ]
        for title in ("filled", "left", "converted"):
            entries, groups = getattr(self, title), {}
            lines.append(f"{title:<10} {len(entries) or 'nothing'}")
            for name, why in entries:
                groups.setdefault(clean(why), []).append(clean(name))
            for why, found in groups.items():
                more = f" and {len(found) - EXAMPLES} more" if len(found) > EXAMPLES else ""
                rows = found if names else [", ".join(found[:EXAMPLES]) + more]
                lines += [f"           {row}: {why}" for row in rows]
        return "\n".join(lines)
