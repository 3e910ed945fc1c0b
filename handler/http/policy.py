"""Content security policies: a page of ours tells the browser what it may load, and from where."""

import hashlib
import re
from base64 import b64encode

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def policy(html: str, **allowed: str) -> str:
    """The header ``Content-Security-Policy`` of a page.

    The page loads nothing, and runs no scripts and styles but those that stand in it, in elements
    without attributes. Each of these is named by its hash, so that whatever else found its way into
    the page would not run. `allowed` adds to that: ``img="blob:"`` is for images.
    """
    sources: dict[str, list[str]] = {}
    for kind, content in _INLINE.findall(html):
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        sources.setdefault(kind, []).append(f"'sha256-{digest}'")
    for kind, more in allowed.items():
        sources.setdefault(kind, []).append(more)
    directives = [f"{kind}-src {' '.join(named)}" for kind, named in sources.items()]
    nothing_else = ("default-src", "base-uri", "form-action", "frame-ancestors")
    return "; ".join([*(f"{name} 'none'" for name in nothing_else), *directives])
