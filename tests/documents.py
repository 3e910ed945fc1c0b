"""The documents, whose commands and figures the tests hold to what is true: README and docs/."""

import re

from tests.conftest import ROOT

PAGES = {
    name: ROOT / name
    for name in (
        "README.md",
        "docs/client.md",
        "docs/api.md",
        "docs/recipes.md",
        "docs/switch.md",
        "docs/models.md",
        "docs/server.md",
        "docs/settings.md",
        "docs/deploy.md",
        "docs/operations.md",
        "docs/batch.md",
        "docs/performance.md",
        "docs/reliability.md",
        "docs/troubleshooting.md",
        "docs/develop.md",
    )
}
"""In the order in which they are read: a page may use what the shell blocks before it defined."""


def read(name: str) -> str:
    """The text of one page."""
    return PAGES[name].read_text()


def text() -> str:
    """All pages, one after the other."""
    return "\n".join(page.read_text() for page in PAGES.values())


def blocks(language: str) -> list[tuple[str, str]]:
    """The blocks of code in `language`: the page's name and the code."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(name, code) for name in PAGES for code in fence.findall(read(name))]


def without_blocks(markdown: str) -> str:
    """The sentences, tables and headings of a page."""
    return re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
