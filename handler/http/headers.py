"""Header fields: callers' taken apart, by the grammar of RFC 9110, and those of our own."""

import re
from collections.abc import Mapping, Sequence

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
    """Return the one of `offers`, media types in lower case, that the header ``Accept`` asks for.

    It is the first offer, unless `accept` names another one before all else and gives no offer more
    weight. API Gateway looks at the first type alone, whatever the weights, to decide whether an
    answer is binary; where the two disagreed, its caller would get the answer's base64.
    """
    first, weights = "", dict[str, float]()
    for element in _ELEMENTS.findall(accept):
        media_range, others = parameters(element)
        first = first or media_range
        weight = others.get("q", "1")
        if _WEIGHT.fullmatch(weight):
            weights.setdefault(media_range, float(weight))
    wanted = {offer: _weight_of(offer, weights) for offer in offers}
    is_asked_for = 0 < wanted.get(first, 0) == max(wanted.values())
    return first if is_asked_for else offers[0]


def _weight_of(offer: str, weights: Mapping[str, float]) -> float:
    """Return the weight of the most specific media range that covers `offer`; 0 if none does."""
    kind = offer.partition("/")[0]
    ranges = (offer, f"{kind}/*", "*/*")
    return next((weights[media_range] for media_range in ranges if media_range in weights), 0)


def own_headers(fingerprints: Sequence[str], truncated: bool) -> dict[str, str]:
    """An answer's own headers: whose vectors it has, and whether the end of a text was cut off."""
    headers = {}
    if fingerprints:
        headers["X-Clip-Fingerprint"] = ", ".join(fingerprints)
    if truncated:
        headers["X-Clip-Truncated"] = "true"
    return headers
