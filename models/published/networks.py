"""Which network a set of arrays belongs to: what their shapes show, and what must be known besides."""

from __future__ import annotations

import dataclasses

from models import presets
from models.config import STAGES, Config
from models.presets import PRESETS

FIELDS = tuple(f.name for f in dataclasses.fields(Config))
SHOWN = ("depth", "width", "in_channels", "classes", "norm", "conv1_frames", "inflate", "inflated", "blocks")
CHOSEN = ("frames", "size", "dropout", "non_local")  # what a preset decides; the rest comes from arrays and source
SHAPES = "shapes of the arrays"
STRIDES = ("conv1_stride", "pool1_stride")


def settled(where, facts, shown, preset=None, changes=None):
    """The Config of a file.

    What the arrays show cannot be changed; beyond that `changes` count most, then the file's own settings, then what
    the source's networks have in common, then the preset, then what is usual.

    Returns (Config, dict of field -> (value, why) for those that no array shows).

    Raises ValueError where two of them contradict each other, or where something is open and must be asked for.
    """
    changes = changes or {}
    unknown = [name for name in changes if name not in FIELDS]
    if unknown:
        raise ValueError(f"import: no field {unknown[0]!r} of a network; there are {', '.join(FIELDS)}")
    base = {} if preset is None else dict(vars(presets.preset(preset)))
    contradictions(where, shown, base, preset, changes, facts)
    asked = {k: base[k] for k in (*STRIDES, "pool1_frames", "pool2_frames") if k in base}
    layout = chosen(where, facts, shown, asked | facts.fixed | facts.read | changes, changes)
    why, fields = {}, {}
    for values, reason in (
        (facts.usual, "usual of the source"),
        (layout, "the layout of the source"),
        ({k: base[k] for k in CHOSEN if k in base}, f"preset {preset}"),
        (facts.fixed, "all networks of the source"),
        (facts.read, "settings in the file"),
        (changes, "asked for"),
        ({k: shown[k] for k in SHOWN}, SHAPES),
    ):
        fields |= values
        why |= dict.fromkeys(values, reason)
    kinds = shown["non_local"]
    if kinds is None:
        fields = {k: v for k, v in fields.items() if k not in ("non_local", "blocks", "subsample", "scale")}
    elif fields.get("non_local") not in kinds:
        if len(kinds) > 1:
            raise ValueError(
                f"{where}: its non-local blocks can be {' or '.join(kinds)}, not {fields.get('non_local')!r}; choose "
                "with --set non_local=…"
            )
        fields["non_local"], why["non_local"] = kinds[0], SHAPES
    if shown["inflate"] is None:
        fields.pop("inflated")
    try:
        made = Config(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    hidden = {k: (getattr(made, k), reason) for k, reason in why.items() if k in fields and reason != SHAPES}
    return tidy(made), hidden


def contradictions(where, shown, base, preset, changes, facts):
    """Refuse a preset, or a change, that is another network than the file's."""
    wrong = [
        f"{name} is {shown[name]!r} in the file, {changes[name]!r} was asked for"
        for name in SHOWN
        if name in changes and (comparable(changes[name]) != comparable(shown[name]))
    ]
    if base:
        made = presets.preset(preset)
        wrong += [
            f"{name} is {shown[name]!r} in the file, {base[name]!r} in the preset"
            for name in ("depth", "norm", "conv1_frames", "inflate")
            if base[name] != shown[name]
        ]
        kinds = shown["non_local"] or (None,)
        if made.non_local not in kinds and "non_local" not in changes:
            wrong.append(f"non_local is {' or '.join(map(str, kinds))} in the file, {made.non_local} in the preset")
        for stage in STAGES:
            for what, blocks, mine in (
                ("inflated blocks", made.inflated_blocks(stage), (shown["inflated"] or {}).get(stage, ())),
                ("non-local blocks", made.non_local_blocks(stage), shown["blocks"].get(stage, ())),
            ):
                if tuple(blocks) != mine:
                    wrong.append(f"{what} of {stage} are {mine} in the file, {tuple(blocks)} in the preset")
        wrong += [
            f"{name} is {known[name]!r} in {whose}, {base[name]!r} in the preset"
            for known, whose in ((facts.fixed, "networks of this source"), (facts.read, "the file's settings"))
            for name in STRIDES
            if name in known and base[name] != known[name] and name not in changes
        ]
    if wrong:
        hint = "; without --model it is found from the arrays" if base else ""
        raise ValueError(f"{where}: not the network that was asked for: {'; '.join(wrong)}{hint}")


def comparable(value):
    """Lists and tuples, in dicts or not, as tuples."""
    if isinstance(value, dict):
        return {key: tuple(inner) for key, inner in value.items()}
    return value


def chosen(where, facts, shown, given, changes):
    """The one layout that agrees with what is given."""
    fitting = {
        name: layout
        for name, layout in facts.layouts.items()
        if all(given.get(key, value) == value for key, value in layout.items() if key != "frames")
    }
    if len(fitting) == 1 or not facts.layouts:
        return next(iter(fitting.values()), {})
    if not fitting and len(facts.layouts) == 1:
        (layout,) = facts.layouts.values()
        if all(k in changes for k, v in layout.items() if given.get(k, v) != v):
            return layout
    differing = [k for k in next(iter(facts.layouts.values())) if len({lay[k] for lay in facts.layouts.values()}) > 1]
    if not fitting and differing and all(k in changes for k in differing):
        return {}
    lines = []
    for name, layout in facts.layouts.items():
        sets = " ".join(f"--set {k}={layout[k]}" for k in differing or layout)
        lines.append(f"  {name}: {preset_for(shown, facts.fixed | layout, differing) or sets}")
    problem = "more than one network has these arrays" if fitting else "no network of this source is as asked for"
    raise ValueError(f"{where}: {problem}; choose one of\n" + "\n".join(lines))


def preset_for(shown, fields, differing):
    """'--model NAME' if a preset has what the arrays show, the strides of these fields, and what differs."""
    for name, made in PRESETS.items():
        same = all(getattr(made, k) == shown[k] for k in ("depth", "norm", "conv1_frames", "inflate"))
        same = same and all(getattr(made, k) == fields[k] for k in (*STRIDES, *differing))
        same = same and made.non_local in (shown["non_local"] or (None,))
        same = same and all(made.inflated_blocks(s) == (shown["inflated"] or {}).get(s, ()) for s in STAGES)
        if same and all(made.non_local_blocks(s) == shown["blocks"].get(s, ()) for s in STAGES):
            return f"--model {name}"
    return None


def tidy(made):
    """The same network with `blocks` and `inflated` as the presets have them, where one has the same blocks."""
    for preset in PRESETS.values():
        if preset.depth != made.depth:
            continue
        if preset.inflate == made.inflate and all(preset.inflated_blocks(s) == made.inflated_blocks(s) for s in STAGES):
            made = dataclasses.replace(made, inflated=preset.inflated)
        if preset.non_local is None or made.non_local is None:
            continue
        if all(preset.non_local_blocks(s) == made.non_local_blocks(s) for s in STAGES):
            made = dataclasses.replace(made, blocks=preset.blocks)
    return made


def nearest(made):
    """(name, changes): the preset that differs from a Config in the fewest fields, and those fields."""
    found = []
    for name, preset in PRESETS.items():
        changes = {f: getattr(made, f) for f in FIELDS if getattr(made, f) != getattr(preset, f)}
        found.append((len(changes), name, changes))
    _, name, changes = min(found, key=lambda entry: entry[0])
    return name, changes
