"""The README and the pages of the documentation: their code blocks, and their tables."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Those that show a file of the root.
_SHOWN = {"changelog.md", "contributing.md", "security.md"}

README = "README.md"
PAGES = {
    README: (ROOT / README).read_text(),
    **{
        f"docs/{path.name}": path.read_text()
        for path in sorted((ROOT / "docs").glob("*.md"))
        if path.name not in _SHOWN
    },
}


def blocks(language: str, page: str) -> list[str]:
    """Return a page's blocks of code."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def section(page: str, title: str) -> str:
    """Return what is beneath a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n", PAGES[page], re.MULTILINE)
    assert found, f"{page} has no section {title!r}."
    rest = PAGES[page][found.end() :]
    return re.split(rf"^#{{1,{len(found[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Return the rows of a text's tables whose first cell is code, as lists of cells."""
    lines = (line for line in text.splitlines() if line.startswith("| `"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(cell: str) -> str:
    """Return the code that a cell begins with."""
    match = re.match(r"`([^`]+)`", cell)
    assert match, f"{cell!r} does not begin with code."
    return match[1]


def without_code(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return what links may name of a page: its headings, as GitHub and MyST write them."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
