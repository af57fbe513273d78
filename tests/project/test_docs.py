"""The pages of docs/: code is the source's, examples print what they say, links lead somewhere, nothing is missing.

``python -m tests.sync_docs`` mends the first two.
"""

import ast
import re

import pytest

from minnl import functional
from tests import ROOT, sync_docs
from tests.sync_docs import PAGES

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
OP_PAGES = {name: text for name, text in TEXTS.items() if name.startswith("docs/ops/")}
SHOWN = {
    (match["path"], name)
    for text in TEXTS.values()
    for match in sync_docs.SOURCE.finditer(text)
    for name in match["names"].split()
}
REFRESH = "is not up to date: python -m tests.sync_docs"


def prose(text):
    """A page without its code blocks and formulas."""
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", text)


def anchors(text):
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """(target page or file, anchor) of every link that is not to the web."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[page])):
        if not link.startswith(("http://", "https://", "mailto:")):
            target, _, anchor = link.partition("#")
            path = (ROOT / page).parent / target if target else ROOT / page
            yield path.resolve(), anchor


@pytest.mark.parametrize("page", TEXTS)
def test_code_is_the_present_source(page):
    assert sync_docs.with_sources(TEXTS[page]) == TEXTS[page], f"{page} {REFRESH}"


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if "<!-- run -->" in text])
def test_examples_print_what_the_page_says(page):
    assert sync_docs.with_outputs(TEXTS[page], page) == TEXTS[page], f"{page} {REFRESH}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_mark_is_understood(page):
    text = TEXTS[page]
    assert len(sync_docs.SOURCE.findall(text)) == len(re.findall(r"(?m)^<!-- source", text))
    assert len(sync_docs.RUN.findall(text)) == len(re.findall(r"(?m)^<!-- run", text))
    assert text.count("```") % 2 == 0


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        assert path.exists(), f"{page} links to {path}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{page} links to #{anchor} of {path.name}"


@pytest.mark.parametrize("page", TEXTS)
def test_formulas_within_lines_survive_markdown(page):
    """In $...$ Markdown takes a backslash before punctuation for an escape and eats it."""
    for formula in re.findall(r"(?<![\w$])\$([^$\n]+)\$", re.sub(r"`[^`\n]*`", "", prose(TEXTS[page]))):
        assert not re.search(r"\\[,;:!{}_*#]", formula), f"{page}: ${formula}$ belongs into a math block"


def test_every_page_is_found_from_the_start_page():
    found, ahead = set(), [ROOT / "docs/README.md"]
    while ahead:
        path = ahead.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in TEXTS and name not in found:
            found.add(name)
            ahead += [target for target, _ in links(name)]
    assert found == set(TEXTS)


def test_every_public_function_is_on_an_op_page():
    told = " ".join(text for name, text in OP_PAGES.items() if not name.endswith("README.md"))
    index = OP_PAGES["docs/ops/README.md"]
    for name in functional.__all__:
        assert re.search(rf"`F\.{name}\b", told), f"F.{name} is on no page of docs/ops"
        assert f"`{name}`" in index, f"{name} is not in docs/ops/README.md"


def test_every_backward_of_ops_is_shown():
    for path in sorted(ROOT.glob("minnl/ops/*.py")):
        for node in ast.parse(path.read_text()).body:
            methods = {child.name for child in getattr(node, "body", []) if isinstance(child, ast.FunctionDef)}
            if isinstance(node, ast.ClassDef) and "backward" in methods:
                name = path.relative_to(ROOT).as_posix()
                shown = {(name, node.name), (name, f"{node.name}.backward")} & SHOWN
                assert shown, f"{name} {node.name}.backward is on no page"


def test_every_loop_of_the_reference_is_shown():
    helpers = {"triple", "paddings", "out_sizes", "frozen_batch_norm", "affine", "attention"}  # say nothing new
    for path in sorted(ROOT.glob("tests/reference/*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.removesuffix("_backward") not in helpers:
                name = path.relative_to(ROOT).as_posix()
                assert (name, node.name) in SHOWN, f"{name} {node.name} is on no page"


def test_pages_that_the_source_names_exist():
    files = [*ROOT.glob("minnl/**/*.py"), *ROOT.glob("models/**/*.py"), ROOT / "train.py"]
    for path in files:
        for page in re.findall(r"docs/[\w/]+\.md", path.read_text()):
            assert page in TEXTS, f"{path.relative_to(ROOT)} names {page}"
