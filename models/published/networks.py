"""The network that a set of arrays belongs to: what their shapes show, and what must be known besides."""

import dataclasses

from models import presets
from models.config import PUBLISHED_BLOCKS, STAGES, Config
from models.presets import PRESETS

FIELDS = tuple(f.name for f in dataclasses.fields(Config))
SHOWN = ("depth", "width", "in_channels", "classes", "norm", "conv1_frames", "inflate", "inflated", "blocks")
CHOSEN = ("frames", "size", "dropout", "non_local")  # Fields that a preset decides; arrays and source give the others.
SHAPES = "shapes of the arrays"
STRIDES = ("conv1_stride", "pool1_stride")


def settled(where, facts, shown, preset=None, changes=None):
    """The Config of a file.

    What the arrays show cannot be changed. For all other fields `changes` count most, then the settings in the file,
    then what the networks of the source have in common, then the preset, then what is usual.

    Returns (Config, dict of field -> (value, why) for the fields that no array shows).

    Raises ValueError where two of them contradict each other, or where a field is open and must be asked for.
    """
    changes = changes or {}
    unknown = [name for name in changes if name not in FIELDS]
    if unknown:
        raise ValueError(f"import: no field {unknown[0]!r} of a network; there are {', '.join(FIELDS)}")
    base = {} if preset is None else vars(presets.preset(preset))
    contradictions(where, shown, preset, changes, facts)
    asked = {k: base[k] for k in (*STRIDES, "pool1_frames", "pool2_frames") if k in base}
    why, fields = {}, {}
    for values, reason in (
        (facts.usual, "usual of the source"),
        (layout(where, facts, shown, asked | facts.fixed | facts.read, changes), "the layout of the source"),
        ({k: base[k] for k in CHOSEN if k in base}, f"preset {preset}"),
        (facts.fixed, "all networks of the source"),
        (facts.read, "settings in the file"),
        (changes, "asked for"),
        ({k: shown[k] for k in SHOWN}, SHAPES),
    ):
        fields |= values
        why |= dict.fromkeys(values, reason)
    modes = shown["non_local"]
    if modes is None:
        fields = {k: v for k, v in fields.items() if k not in ("non_local", "blocks", "subsample", "scale")}
    elif fields.get("non_local") not in modes:
        if len(modes) > 1:
            raise ValueError(
                f"{where}: its non-local blocks can be {' or '.join(modes)}, not {fields.get('non_local')!r}; choose "
                "with --set non_local=…"
            )
        fields["non_local"], why["non_local"] = modes[0], SHAPES
    if shown["inflate"] is None:
        fields.pop("inflated")
    try:
        made = Config(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    hidden = {k: (getattr(made, k), reason) for k, reason in why.items() if k in fields and reason != SHAPES}
    return shortened(made), hidden


def compared(made, shown):
    """(what, value in the arrays, value in a Config) of all that the shapes of arrays show of a preset."""
    for name in ("depth", "norm", "conv1_frames", "inflate"):
        yield f"{name} is", shown[name], getattr(made, name)
    for stage in STAGES:
        inflated, blocks = shown["inflated"] or {}, shown["blocks"]
        yield f"inflated blocks of {stage} are", inflated.get(stage, ()), tuple(made.inflated_blocks(stage))
        yield f"non-local blocks of {stage} are", blocks.get(stage, ()), tuple(made.non_local_blocks(stage))


def contradictions(where, shown, preset, changes, facts):
    """Raise ValueError for a preset, or a change, that is another network than the file's."""
    wrong = [
        f"{name} is {shown[name]!r} in the file, {changes[name]!r} was asked for"
        for name in SHOWN
        if name in changes and tuples(changes[name]) != tuples(shown[name])
    ]
    if preset is not None:
        made, modes = presets.preset(preset), shown["non_local"] or (None,)
        wrong += [
            f"{what} {found!r} in the file, {theirs!r} in the preset"
            for what, found, theirs in compared(made, shown)
            if found != theirs
        ]
        if made.non_local not in modes and "non_local" not in changes:
            wrong.append(f"non_local is {' or '.join(map(str, modes))} in the file, {made.non_local} in the preset")
        wrong += [
            f"{name} is {known[name]!r} in {whose}, {getattr(made, name)!r} in the preset"
            for known, whose in ((facts.fixed, "networks of this source"), (facts.read, "the file's settings"))
            for name in STRIDES
            if name not in changes and known.get(name, getattr(made, name)) != getattr(made, name)
        ]
    if wrong:
        hint = "" if preset is None else "; without --model it is found from the arrays"
        raise ValueError(f"{where}: not the network that was asked for: {'; '.join(wrong)}{hint}")


def tuples(value):
    """A dict with tuples for lists; any other value as it is."""
    return {key: tuple(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def layout(where, facts, shown, known, changes):
    """The fields of the one layout of the source that agrees with the known fields and the changes."""
    layouts, given = list(facts.layouts.values()), known | changes
    conflicts = [{k for k, v in fields.items() if k != "frames" and given.get(k, v) != v} for fields in layouts]
    fitting = [fields for fields, conflict in zip(layouts, conflicts, strict=True) if not conflict]
    if len(fitting) == 1 or not layouts:
        return fitting[0] if fitting else {}
    differing = [k for k in layouts[0] if len({fields[k] for fields in layouts}) > 1]
    if not fitting and changes.keys() >= set(differing).union(*conflicts):  # The changes say all that is open.
        return {k: v for k, v in layouts[0].items() if k not in differing}
    lines = []
    for name, fields in facts.layouts.items():
        sets = " ".join(f"--set {k}={fields[k]}" for k in differing or fields)
        lines.append(f"  {name}: {preset_for(shown, facts.fixed | fields, differing) or sets}")
    problem = "more than one network has these arrays" if fitting else "no network of this source is as asked for"
    raise ValueError(f"{where}: {problem}; choose one of\n" + "\n".join(lines))


def preset_for(shown, fields, differing):
    """'--model NAME' if a preset has what the arrays show, the strides of these fields, and what differs."""
    for name, made in PRESETS.items():
        same = all(getattr(made, k) == fields[k] for k in (*STRIDES, *differing))
        same = same and made.non_local in (shown["non_local"] or (None,))
        if same and all(found == theirs for _, found, theirs in compared(made, shown)):
            return f"--model {name}"
    return None


def shortened(made):
    """The same network with `inflated` and `blocks` as the presets have them, where these are the same blocks."""
    shorts = [{"inflated": None}] if made.inflate else []
    shorts += [{"blocks": number} for number in PUBLISHED_BLOCKS[made.depth]] if made.non_local else []
    for short in shorts:
        other = dataclasses.replace(made, **short)
        if all(
            (other.inflated_blocks(stage), other.non_local_blocks(stage))
            == (made.inflated_blocks(stage), made.non_local_blocks(stage))
            for stage in STAGES
        ):
            made = other
    return made


def nearest(made):
    """(name, changes): the preset that differs from a Config in the fewest fields, and those fields."""
    found = []
    for name, preset in PRESETS.items():
        changes = {f: getattr(made, f) for f in FIELDS if getattr(made, f) != getattr(preset, f)}
        found.append((len(changes), name, changes))
    return min(found, key=lambda entry: entry[0])[1:]
