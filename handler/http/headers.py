"""Header fields: callers' taken apart, by the grammar of RFC 9110, and those of our own."""

import re
from collections.abc import Sequence

# A quoted string may hold the separator; one that is never closed runs to the end. The doubled
# quantifiers never go back, so that a hostile header is read once, and not once a character.
_QUOTED = r'"(?:\\.|[^"\\])*+(?:"|\\?\Z)'
_ELEMENTS = re.compile(rf'(?s)(?:[^,"]|{_QUOTED})++')
_PARAMETERS = re.compile(rf'(?s)(?:[^;"]|{_QUOTED})++')
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def parameters(value: str) -> tuple[str, dict[str, str]]:
    """``text/plain; Charset="utf-8"`` -> ``("text/plain", {"charset": "utf-8"})``.

    What comes before the parameters, and their names, are in lower case.
    """
    first, *rest = _PARAMETERS.findall(value) or [""]
    found: dict[str, str] = {}
    for parameter in rest:
        name, _, text = parameter.partition("=")
        found.setdefault(name.strip().lower(), _unquoted(text.strip()))
    return first.strip().lower(), found


def _unquoted(text: str) -> str:
    if text.startswith('"'):
        return re.sub(r"(?s)\\(.)", r"\1", text[1:].removesuffix('"'))
    return text


def preferred(accept: str, offers: Sequence[str]) -> str:
    """The one of `offers`, media types in lower case, that the header ``Accept`` asks for.

    An offer has the weight of the most specific range that covers it. Of equal weights the one
    that `accept` names first wins, because API Gateway decides by the first whether an answer is
    binary. Where none is acceptable, or nothing is asked for, it is the first offer.
    """
    ranges: dict[str, tuple[float, int]] = {}  # weight, and minus the place in `accept`
    for place, element in enumerate(_ELEMENTS.findall(accept)):
        media_range, others = parameters(element)
        weight = others.get("q", "1")
        if _WEIGHT.fullmatch(weight):
            ranges.setdefault(media_range, (float(weight), -place))
    wanted = {offer: _weight_of(offer, ranges) for offer in offers}
    best = max(offers, key=lambda offer: wanted[offer])
    return best if wanted[best][0] > 0 else offers[0]


def _weight_of(offer: str, ranges: dict[str, tuple[float, int]]) -> tuple[float, int]:
    kind = offer.partition("/")[0]
    for media_range in (offer, f"{kind}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return (0, 0)


def own_headers(fingerprints: Sequence[str], truncated: bool) -> dict[str, str]:
    """An answer's own headers: whose vectors it has, and whether the end of a text was cut off."""
    headers = {}
    if fingerprints:
        headers["X-Clip-Fingerprint"] = ", ".join(fingerprints)
    if truncated:
        headers["X-Clip-Truncated"] = "true"
    return headers
