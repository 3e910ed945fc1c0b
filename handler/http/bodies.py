"""The bodies of requests: which image, or images, a request of a given Content-Type holds."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from handler import schemas
from handler.errors import (
    InvalidField,
    InvalidMultipart,
    MissingField,
    TooManyImages,
    UnsupportedMediaType,
)
from handler.http.headers import parameters
from handler.images.s3 import Image
from handler.outcome import Outcome

OCTETS = "application/octet-stream"
JSON = "application/json"
FORM = "multipart/form-data"
URL_ENCODED = "application/x-www-form-urlencoded"

Body = bytes | bytearray

_MOST_HEAD = 8192
"""Bytes of one part's headers; browsers and libraries send a few hundred."""
_MOST_MISTAKEN = 100
"""Times that a part may hold the boundary and go on. Chance makes none; each costs time."""

_NEWLINES = re.compile(rb"[\r\n]*+")
_LINE_END = re.compile(rb"[ \t]*+\r\n")


class Part(NamedTuple):
    """One part of a form."""

    name: str
    """Empty where the part has none."""
    is_file: bool
    """Whether the sender gave a file's name."""
    data: memoryview
    """The content, where it lies in the body: nothing is copied."""

    def image(self) -> Image:
        """The content as the bytes of an image file.

        Raises:
            InvalidField: it is text, so the sender forgot something.
        """
        if not self.is_file and _is_text(self.data[:256]):
            raise InvalidField(
                f"the field {self.name[:64]!r} is text: put @ before the file's name "
                f"(curl -F {self.name[:64]}=@photo.jpg); base64 and s3:// are sent as JSON"
            )
        return self.data


def read_image(content_type: str, body: Body) -> Image:
    """The one image of a request, in whichever of the three forms it came."""
    kind, _ = parameters(content_type)
    if kind == FORM:
        return _only(multipart_parts(content_type, body, "image")).image()
    if kind == JSON:
        return schemas.validate(schemas.EncodeRequest, body).read()
    if kind.startswith("image/") or kind == OCTETS:
        return memoryview(body)
    forms = 'multipart/form-data with a field "image", application/json, or the bytes of an image'
    raise _unread(kind, body, f"{forms} as image/jpeg, image/png or {OCTETS}")


def read_images(content_type: str, body: Body, limit: int) -> list[Outcome[Image]]:
    """The images of a batch request, in order."""
    kind, _ = parameters(content_type)
    if kind == FORM:
        parts = multipart_parts(content_type, body, "images", most=2 * limit)
        schemas.check_count(len(parts), limit)
        return [Outcome.of(part.image) for part in parts]
    if kind == JSON:
        request = schemas.validate(schemas.EncodeBatchRequest, body)
        return schemas.read_images(request.images, limit)
    raise _unread(kind, body, 'multipart/form-data with fields "images", or application/json')


def _unread(kind: str, body: Body, forms: str) -> UnsupportedMediaType:
    """The error for a Content-Type that is not read here, with advice for the likely mistake."""
    came = (
        f"the Content-Type {kind[:64]!r} is not read here" if kind else "there is no Content-Type"
    )
    if bytes(body[:64]).lstrip().startswith((b"{", b"[")):
        advice = "the body looks like JSON, so send the header Content-Type: application/json"
    elif kind == URL_ENCODED:
        advice = (
            "such a form carries no files. With curl, send one with -F image=@photo.jpg, "
            "or JSON with -H 'Content-Type: application/json' -d '{...}'"
        )
    else:
        advice = f"send {forms}"
    return UnsupportedMediaType(f"{came}: {advice}")


def _only(parts: list[Part]) -> Part:
    if len(parts) > 1:
        raise InvalidField(
            f"the form has {len(parts)} parts named 'image': send one, or name them 'images' and "
            "send them to /encode_images"
        )
    return parts[0]


def _is_text(head: memoryview) -> bool:
    """Whether `head`, the beginning of a part, can only be text. No image file begins like that."""
    try:
        text = bytes(head).decode()
    except UnicodeDecodeError:
        return False
    return text.replace("\r", "").replace("\n", "").isprintable() and text != ""


# --- multipart/form-data --------------------------------------------------------------------------
# The body is in memory already, and a part's content is one piece of it, so the separators are all
# that has to be found. A parser for streams reads byte by byte where a hostile body wants it to.


def multipart_parts(content_type: str, body: Body, field: str, most: int = 16) -> list[Part]:
    """Every part named `field`, in order; of all names, at most `most` parts.

    Raises:
        InvalidMultipart: no boundary, or malformed.
        MissingField: no such part; the text says which there are.
        TooManyImages: more parts than `most`.
    """
    boundary = parameters(content_type)[1].get("boundary")
    if not boundary:
        raise InvalidMultipart("the Content-Type has no boundary: let your HTTP client set it")
    parts = list(_parts(body, boundary.encode("latin-1", "replace"), most))
    found = [part for part in parts if part.name == field]
    if not found:
        raise MissingField(_no_part(field, {part.name for part in parts if part.name}))
    return found


def _no_part(field: str, names: set[str]) -> str:
    other = "images" if field == "image" else "image"
    if other in names:
        return f"no part named {field!r} in the form: name it so, or send it to /encode_{other}"
    sent = ", ".join(sorted(repr(name[:64]) for name in names)[:10]) or "none"
    return f"no part named {field!r} in the form: name it so; parts sent: {sent}"


def _parts(body: Body, boundary: bytes, most: int) -> Iterator[Part]:
    view = memoryview(body)
    begin = None
    for count, (stop, following) in enumerate(_separators(body, boundary)):
        if begin is not None:
            yield _part(body, view, begin, stop)
        if count >= most and following:
            raise TooManyImages(f"more than {most} parts in one form: send several requests")
        begin = following


def _part(body: Body, view: memoryview, begin: int, stop: int) -> Part:
    """The part between two separators, of which the first ends with a line break before `begin`."""
    blank = body.find(b"\r\n\r\n", begin - 2, min(stop, begin + _MOST_HEAD))
    if blank < 0:
        raise InvalidMultipart("a part of the form has no empty line after its headers")
    name, is_file = "", False
    for line in bytes(view[begin : max(begin, blank)]).split(b"\r\n"):
        key, _, value = line.decode("utf-8", "replace").partition(":")
        if key.strip().lower() == "content-disposition":
            given = parameters(value)[1]
            name, is_file = given.get("name", ""), "filename" in given or "filename*" in given
    return Part(name, is_file, view[blank + 4 : stop])


def _separators(body: Body, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Where each separator begins and where what follows it does, which for the last is 0.

    Raises:
        InvalidMultipart: there is no first, or no last.
    """
    line = b"--" + boundary
    leading = _NEWLINES.match(body)
    at = leading.end() if leading else 0
    if not body.startswith(line, at):
        raise InvalidMultipart("the body is not well-formed: it does not begin with the boundary")
    end = at + len(line)
    mistaken = 0
    while mistaken < _MOST_MISTAKEN:
        if body.startswith(b"--", end):
            yield at, 0
            return
        line_end = _LINE_END.match(body, end)
        if line_end:
            yield at, line_end.end()
        else:
            mistaken += 1
        at = body.find(b"\r\n" + line, end)
        if at < 0:
            raise InvalidMultipart("the form ends too early: its last boundary is missing")
        end = at + 2 + len(line)
    raise InvalidMultipart("the form is not well-formed: its boundary is part of its content")
