"""Code on the pages of docs/ is a copy, and so is what it prints: this script brings both up to date.

    python -m tests.sync_docs

Two HTML comments mark what it cares for. ``<!-- source: minnl/ops/conv.py Conv3d.forward rows -->`` stands before a
code block with the present source of those functions or classes. ``<!-- run -->`` stands before a code block that is
run, the blocks of a page one after the other in one namespace; what it prints is in the ``text`` block below it.
tests/project/test_docs.py fails where a page is not what this script would make of it.
"""

import ast
import contextlib
import io
import re
import textwrap

from tests import ROOT

PAGES = sorted(ROOT.glob("docs/**/*.md"))
SOURCE = re.compile(r"(?m)^<!-- source: (?P<path>\S+) (?P<names>.+) -->\n```python\n(?P<code>(?:.*\n)*?)```$")
RUN = re.compile(
    r"(?m)^<!-- run -->\n```python\n(?P<code>(?:.*\n)*?)```\n(?:\n```text\n(?P<output>(?:.*\n)*?)```\n)?"
)  # fmt: skip


def source(path, name):
    """The text of a function, class or method ("Class.method"), from its decorators on, not indented."""
    text = (ROOT / path).read_text()
    node = ast.parse(text)
    for part in name.split("."):
        found = [child for child in node.body if getattr(child, "name", None) == part]
        if not found:
            raise LookupError(f"{path} has no {name}")
        node = found[0]
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return textwrap.dedent("".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno]))


def with_sources(page):
    """The page with every marked code block as the source is now."""

    def block(match):
        path, names = match["path"], match["names"]
        methods = all("." in name for name in names.split())
        code = ("\n" if methods else "\n\n").join(source(path, name) for name in names.split())
        return f"<!-- source: {path} {names} -->\n```python\n{code}```"

    return SOURCE.sub(block, page)


def with_outputs(page, name="page"):
    """The page with every marked example run, and what it printed below it."""
    namespace = {"__name__": "example"}

    def block(match):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            line = page.count("\n", 0, match.start("code"))  # so that a traceback tells the line of the page
            exec(compile("\n" * line + match["code"], str(name), "exec"), namespace)
        shown = f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""
        return f"<!-- run -->\n```python\n{match['code']}```\n{shown}"

    return RUN.sub(block, page)


def main():
    for path in PAGES:
        page = path.read_text()
        new = with_outputs(with_sources(page), path)
        if new != page:
            path.write_text(new)
            print(f"refreshed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
