"""Reads the settings that SlowFast and mmaction2 write beside their weights, as text: nothing in them is run.

SlowFast writes YAML, of which :func:`yaml` knows as much as such files use. mmaction2 writes the Python of its
configuration files, which the standard library's ast parses; a value that is more than a plain one is given as
UNREADABLE, and whatever needs that value must say so.
"""

import ast
import re
import warnings

LONGEST = 200_000  # The most letters that are read; settings of published files have some thousand.
LONGEST_VALUE = 20_000  # The most letters of an assignment that is parsed; longer ones could be too deep for ast.
DEEPEST = 30  # The most brackets or levels within one another; published settings have about 8.
UNREADABLE = type("Unreadable", (), {"__repr__": lambda self: "<an expression>"})()


def limited(text):
    """The text; raises ValueError for one that is far longer than settings are."""
    if len(text) > LONGEST:
        raise ValueError(f"they have {len(text):,} letters, at most {LONGEST:,} are read")
    return text


# YAML

ENTRY = re.compile(r"-(?: +(.*))?")
KEY = re.compile(r"([\w.\-]+):(?: +(.*))?")


def yaml(text):
    """A dict of maps by indentation, lists (``- x`` or ``[x]``) and plain values."""
    lines = []
    for number, line in enumerate(limited(text).splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).rstrip()
        if line and line not in ("---", "..."):
            content = line.lstrip(" ")
            lines.append((number, len(line) - len(content), content))
    lines.reverse()
    value = block(lines, 0) if lines else {}
    if lines or not isinstance(value, dict):
        raise ValueError(f"line {lines[-1][0] if lines else 1} is no key with a value")
    return value


def block(lines, depth):
    """The value of the lines, the first one last, that are indented as the first one is; they are taken off."""
    number, indent, content = lines[-1]
    if depth > DEEPEST:
        raise ValueError(f"line {number} lies too deep")
    if ENTRY.fullmatch(content):
        made = []
        while lines and lines[-1][1] == indent and (entry := ENTRY.fullmatch(lines[-1][2])):
            number = lines.pop()[0]
            if entry[1]:
                lines.append((number, indent + entry.start(1), entry[1]))
            made.append(block(lines, depth + 1) if entry[1] or deeper(lines, indent) else None)
        return made
    if not KEY.fullmatch(content):
        return scalar(folded(lines.pop()[2], lines, indent - 1))
    made = {}
    while lines and lines[-1][1] == indent and (key := KEY.fullmatch(lines[-1][2])):
        lines.pop()
        if key[2]:
            made[key[1]] = scalar(folded(key[2], lines, indent))
        elif deeper(lines, indent) or (lines and lines[-1][1] == indent and ENTRY.fullmatch(lines[-1][2])):
            made[key[1]] = block(lines, depth + 1)
        else:
            made[key[1]] = None
    return made


def deeper(lines, indent):
    return bool(lines) and lines[-1][1] > indent


def folded(content, lines, indent):
    """A value with the deeper lines that continue it."""
    parts = [content]
    while deeper(lines, indent):
        parts.append(lines.pop()[2])
    return " ".join(parts)


def scalar(text):
    if text.startswith("["):
        return flow(re.findall(r"[\[\],]|'[^']*'|\"[^\"]*\"|[^\[\],\s][^\[\],]*", text)[::-1], 0)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d{1,18}\.?\d{0,30}|\.\d{1,30})([eE][-+]?\d{1,3})?", text):
        return float(text)
    words = {"true": True, "false": False, "null": None, "~": None, "{}": {}}
    return words.get(text.lower(), text)


def flow(tokens, depth):
    """A list from tokens, the first one last: [1, [2, x]]."""
    if not tokens or tokens.pop() != "[" or depth > DEEPEST:
        raise ValueError("a list in them is damaged")
    made = []
    while tokens and tokens[-1] != "]":
        if tokens[-1] == ",":
            tokens.pop()
        else:
            made.append(flow(tokens, depth + 1) if tokens[-1] == "[" else scalar(tokens.pop().strip()))
    if not tokens:
        raise ValueError("a list in them has no end")
    tokens.pop()
    return made


# Python

TOKEN = re.compile(
    r"\'\'\'[\s\S]*?\'\'\'|\"\"\"[\s\S]*?\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""  # Strings.
    r"|['\"#][^\n]*|\\\n|[^'\"#\\\n()\[\]{}]+|[\s\S]"  # Comments, strings without an end, other text.
)


def python(text):
    """name -> value of the assignments at the left margin.

    Names of earlier assignments are looked up. A dict that is assigned to a name with a dict is merged into it, as the
    settings of a configuration file are into those of the file that it is based on: mmaction2 writes all of them one
    behind the other.
    """
    names, merges = {}, iter(range(10_000))
    for line in logical_lines(limited(text)):
        if start := re.match(r"([^\W\d]\w*)[ \t]*=", line):
            name, new = start[1], evaluated(line[start.end() :].strip(), names)
            both = isinstance(new, dict) and isinstance(names.get(name), dict)
            names[name] = merged(names[name], new, merges) if both else new
    return names


def logical_lines(text):
    """The lines of Python code, each with those that brackets and strings continue it on."""
    begin = depth = 0
    for token in TOKEN.finditer(text):
        depth += (token[0] in ("(", "[", "{")) - (token[0] in (")", "]", "}"))
        if depth > DEEPEST:
            raise ValueError("their brackets lie too deep")
        if token[0] == "\n" and depth <= 0:
            yield text[begin : token.start()]
            begin, depth = token.end(), 0
    if depth > 0:
        raise ValueError("a bracket in them is not closed")
    yield text[begin:]


def evaluated(expression, names):
    """The value of an expression; UNREADABLE for one that is no Python, or too long for a setting."""
    if len(expression) > LONGEST_VALUE:
        return UNREADABLE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of unknown escape sequences in strings.
            node = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return UNREADABLE
    return value(node, names)


def value(node, names):
    """The value of a node of plain values; UNREADABLE for any other."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as found):
            return found
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name(id=name):
            return names.get(name, UNREADABLE)
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            return [value(entry, names) for entry in entries]
        case ast.Call(func=ast.Name(id="list" | "tuple"), args=[ast.List() | ast.Tuple() as entries], keywords=[]):
            return value(entries, names)
        case ast.Call(func=ast.Name(id="dict"), args=args, keywords=keywords):
            pairs = [(word.arg and ast.Constant(word.arg), word.value) for word in keywords]
            return mapping(pairs, names) | ({"**": UNREADABLE} if args else {})
        case ast.Dict(keys=keys, values=values):
            return mapping(zip(keys, values, strict=True), names)
    return UNREADABLE


def mapping(pairs, names):
    """A dict of pairs of nodes; the key is None where the value is given with ``**``."""
    made = {}
    for key, node in pairs:
        found = value(node, names)
        if key is not None:
            name = value(key, names)
            made[name if isinstance(name, (str, int)) else UNREADABLE] = found
        else:
            made |= found if isinstance(found, dict) else {"**": UNREADABLE}
    return made


def merged(base, new, merges):
    """A dict of settings with those of another file over them."""
    if next(merges, None) is None:
        raise ValueError("too many dicts in them go into one another")
    new = dict(new)
    if new.pop("_delete_", False):
        return new
    both = {key for key in new if isinstance(new[key], dict) and isinstance(base.get(key), dict)}
    return base | {key: merged(base[key], found, merges) if key in both else found for key, found in new.items()}
