"""The settings that SlowFast and mmaction2 write beside their weights, read as text: nothing in them is run.

SlowFast writes YAML, mmaction2 the Python of its configuration files. Both readers know as much of the language as such
files use. What the Python reader does not understand it gives as UNREADABLE, in its place; whoever needs that value
must say so.
"""

import re

LONGEST = 200_000  # letters; those of published files have some thousand
DEEPEST = 30
UNREADABLE = type("Unreadable", (), {"__repr__": lambda self: "<an expression>"})()


def limited(text):
    """The text; raises ValueError for one that is far longer than settings are."""
    if len(text) > LONGEST:
        raise ValueError(f"they have {len(text):,} letters, at most {LONGEST:,} are read")
    return text


# YAML


def yaml(text):
    """A dict of maps by indentation, lists (``- x`` or ``[x]``) and plain values."""
    lines = []
    for number, line in enumerate(limited(text).splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).rstrip()
        if line and line not in ("---", "..."):
            content = line.lstrip(" ")
            lines.append((number, len(line) - len(content), content))
    value, rest = _block(lines[::-1], 0)
    if rest or not isinstance(value, dict):
        raise ValueError(f"line {rest[-1][0] if rest else 1} is no key with a value")
    return value


def _block(lines, depth):
    """(value, lines left) of the lines, the first one last, that are indented as the first one is."""
    if not lines:
        return {}, lines
    number, indent, content = lines[-1]
    if depth > DEEPEST:
        raise ValueError(f"line {number} lies too deep")
    if content == "-" or content.startswith("- "):
        made = []
        while lines and lines[-1][1] == indent and (lines[-1][2] == "-" or lines[-1][2].startswith("- ")):
            number, _, content = lines.pop()
            inner = content[1:].lstrip()
            if inner:
                lines.append((number, indent + len(content) - len(inner), inner))
            value, lines = _block(lines, depth + 1) if inner or _deeper(lines, indent) else (None, lines)
            made.append(value)
        return made, lines
    if not _key(content):
        lines.pop()
        return _scalar(_folded(content, lines, indent - 1)), lines
    made = {}
    while lines and lines[-1][1] == indent and (match := _key(lines[-1][2])):
        lines.pop()
        key, inner = match[1], match[2]
        if inner:
            made[key] = _scalar(_folded(inner, lines, indent))
        elif _deeper(lines, indent) or (lines and lines[-1][1] == indent and lines[-1][2].startswith("-")):
            made[key], lines = _block(lines, depth + 1)
        else:
            made[key] = None
    return made, lines


def _key(content):
    return re.fullmatch(r"([\w.\-]+):(?: +(.*))?", content)


def _deeper(lines, indent):
    return bool(lines) and lines[-1][1] > indent


def _folded(content, lines, indent):
    """A value with the lines behind it that go on with it."""
    parts = [content]
    while _deeper(lines, indent):
        parts.append(lines.pop()[2])
    return " ".join(parts)


def _scalar(text):
    if text.startswith("["):
        return _flow(re.findall(r"[\[\],]|'[^']*'|\"[^\"]*\"|[^\[\],\s][^\[\],]*", text)[::-1], 0)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d{1,18}\.?\d{0,30}|\.\d{1,30})([eE][-+]?\d{1,3})?", text):
        return float(text)
    words = {"true": True, "false": False, "null": None, "~": None, "{}": {}}
    return words.get(text.lower(), text)


def _flow(tokens, depth):
    """A list from tokens, the first one last: [1, [2, x]]."""
    if not tokens or tokens.pop() != "[" or depth > DEEPEST:
        raise ValueError("a list in them is damaged")
    made = []
    while tokens and tokens[-1] != "]":
        if tokens[-1] == ",":
            tokens.pop()
        else:
            made.append(_flow(tokens, depth + 1) if tokens[-1] == "[" else _scalar(tokens.pop().strip()))
    if not tokens:
        raise ValueError("a list in them has no end")
    tokens.pop()
    return made


# Python

TOKEN = re.compile(
    r"(?P<string>[A-Za-z]{0,2}(?:'''[\s\S]*?'''|\"\"\"[\s\S]*?\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"))"
    r"|(?P<number>\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)|(?P<name>[^\W\d]\w*)"
    r"|(?P<space>[ \t\r\f]+|\\\n|\#[^\n]*)|(?P<line>\n)|(?P<mark>\*\*|['\"][^\n]*|.)"
)
CLOSING = {"(": ")", "[": "]", "{": "}"}
WORDS = {"True": True, "False": False, "None": None}


def python(text):
    """name -> value of the assignments at the left margin.

    Names of earlier ones are looked up. A dict assigned to a name that has one is merged into it, as a configuration
    file's is into that of the file it is based on: mmaction2 writes them one behind the other.
    """
    reader = _Python(limited(text))
    while reader.tokens:
        kind, name, margin = reader.tokens.pop()
        if kind != "name" or not margin or reader.next() != "=":
            continue
        reader.pop()
        value = reader.value(0)
        known = reader.names.get(name)
        merge = isinstance(value, dict) and isinstance(known, dict)
        reader.names[name] = reader.merged(known, value) if merge else value
    return reader.names


class _Python:
    """Tokens (kind, text, whether at the left margin), the next one last, and the names assigned so far."""

    def __init__(self, text):
        self.tokens = [
            (m.lastgroup, m[0], m.start() == 0 or text[m.start() - 1] == "\n")
            for m in TOKEN.finditer(text)
            if m.lastgroup != "space"
        ][::-1]
        self.names, self.merges = {}, 0

    def next(self, depth=0):
        """The next token's text, "" at the end; within brackets lines do not count."""
        while depth and self.tokens and self.tokens[-1][0] == "line":
            self.tokens.pop()
        return self.tokens[-1][1] if self.tokens else ""

    def pop(self):
        return self.tokens.pop()[1]

    def value(self, depth):
        """The value of an expression, `depth` brackets deep; UNREADABLE for what is more than plain values."""
        if depth > DEEPEST:
            raise ValueError("their brackets lie too deep")
        found = self.simple(depth)
        if self.next(depth) in ("", *((",", ")", "]", "}", ":") if depth else "\n")):
            return found
        self.skip(depth)
        return UNREADABLE

    def simple(self, depth):
        following = self.next(depth)
        if following in CLOSING:
            return self.bracket(self.pop(), depth + 1)
        if following == "-" and len(self.tokens) > 1 and self.tokens[-2][0] == "number":
            self.pop()
            return -self.simple(depth)
        if following in ("", "\n", ",", ")", "]", "}"):
            return UNREADABLE
        kind, text, _ = self.tokens.pop()
        if kind == "string":
            return self.string(text, depth)
        if kind == "number":
            text = text.replace("_", "")
            return int(text[:30]) if text.isdecimal() else float(text)  # no setting has so many digits
        if kind == "name" and text in ("dict", "list", "tuple") and self.next(depth) == "(":
            found = self.bracket(self.pop(), depth + 1, named=text == "dict")
            return found if text == "dict" or isinstance(found, list) else UNREADABLE
        return WORDS[text] if text in WORDS else self.names.get(text, UNREADABLE) if kind == "name" else UNREADABLE

    def string(self, text, depth):
        parts = [text]
        while self.next(depth) and self.tokens[-1][0] == "string":
            parts.append(self.pop())
        made = []
        for part in parts:
            mark = next(i for i, c in enumerate(part) if c in "'\"")
            size = 3 if part[mark : mark + 3] in ("'''", '"""') else 1
            if mark and part[:mark].lower() not in ("r", "u"):
                return UNREADABLE
            made.append(part[mark + size : -size])
        return "".join(made)

    def bracket(self, opening, depth, named=False):
        """What stands between brackets, behind the first: a list, tuple or dict; `named` are those of dict(…)."""
        entries, pairs, commas = [], {}, 0
        while self.next(depth) not in (CLOSING[opening], ""):
            if self.next(depth) == ",":
                self.pop()
                commas += 1
            elif self.next(depth) == "**":
                self.pop()
                given = self.value(depth)
                pairs |= given if isinstance(given, dict) else {"**": UNREADABLE}
            elif named and len(self.tokens) > 1 and self.tokens[-2][1] == "=":
                key = self.pop()
                self.pop()
                pairs[key] = self.value(depth)
            else:
                entries.append(self.value(depth))
                if opening == "{" and self.next(depth) == ":":
                    self.pop()
                    key = entries.pop()
                    pairs[key if isinstance(key, (str, int)) else UNREADABLE] = self.value(depth)
                elif self.next(depth) not in (",", CLOSING[opening]):
                    entries.append(UNREADABLE)
                    self.skip(depth)
        if self.next(depth):
            self.pop()
        if named or opening == "{":
            return UNREADABLE if entries and opening == "{" else pairs | ({"**": UNREADABLE} if entries else {})
        return entries[0] if opening == "(" and len(entries) == 1 and not commas else entries

    def skip(self, depth):
        """Go to the end of an expression that is not understood."""
        inner = 0
        while self.tokens:
            text = self.tokens[-1][1]
            if inner == 0 and (text in (",", ")", "]", "}") or (text == "\n" and not depth)):
                return
            inner += (text in CLOSING) - (text in CLOSING.values())
            self.tokens.pop()

    def merged(self, base, new):
        """A dict of settings with those of another file over them."""
        self.merges += 1
        if self.merges > 10_000:
            raise ValueError("too many dicts in them go into one another")
        new = dict(new)
        if new.pop("_delete_", False):
            return new
        both = {key for key in new if isinstance(new[key], dict) and isinstance(base.get(key), dict)}
        return base | {key: self.merged(base[key], value) if key in both else value for key, value in new.items()}
