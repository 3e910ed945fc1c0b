"""The bodies of requests: what a request of a given Content-Type holds."""

from typing import TYPE_CHECKING, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

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
from handler.schemas import Schema

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

OCTETS = "application/octet-stream"
JSON = "application/json"
FORM = "multipart/form-data"
URL_ENCODED = "application/x-www-form-urlencoded"

Body = bytes | bytearray


_MOST_MISTAKEN = 100
"""Times that a form may hold its boundary beside those that part it."""


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


def read_json(content_type: str, body: Body, schema: type[Schema]) -> Schema:
    """A request that can only be JSON; raises as `schemas.validate` and for any other type."""
    check_json(content_type, schema.example)
    return schemas.validate(schema, body)


def check_json(content_type: str, example: str) -> None:
    """Refuse every Content-Type but JSON's; `example` is what to send."""
    kind, _ = parameters(content_type)
    if kind != JSON:
        raise UnsupportedMediaType(
            f"{_came(kind)}: send the header Content-Type: application/json and, as the body, "
            f"{example}"
        )


def _came(kind: str) -> str:
    return (
        f"the Content-Type {kind[:64]!r} is not read here" if kind else "there is no Content-Type"
    )


def _unread(kind: str, body: Body, forms: str) -> UnsupportedMediaType:
    """The error for a Content-Type that is not read here, with advice for the likely mistake."""
    if bytes(body[:64]).lstrip().startswith((b"{", b"[")):
        advice = "the body looks like JSON, so send the header Content-Type: application/json"
    elif kind == URL_ENCODED:
        advice = (
            "such a form carries no files. With curl, send one with -F image=@photo.jpg, "
            "or JSON with -H 'Content-Type: application/json' -d '{...}'"
        )
    else:
        advice = f"send {forms}"
    return UnsupportedMediaType(f"{_came(kind)}: {advice}")


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
# python-multipart finds where each part lies. The body is in memory already, so nothing is copied
# and nothing goes through temporary files.


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
    parts = _parts(body, boundary.encode("latin-1", "replace"), most)
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


class _Reader:
    """Takes python-multipart's calls and keeps the parts."""

    def __init__(self, body: Body, most: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._view = memoryview(body)
        self._most = most
        self._header = bytearray()
        self._value = bytearray()
        self._pieces: list[memoryview] = []
        self._name, self._is_file = "", False

    def callbacks(self) -> "MultipartCallbacks":
        """What python-multipart calls."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": self._take,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        if len(self.parts) >= self._most:
            raise TooManyImages(f"more than {self._most} parts in one form: send several requests")
        self._name, self._is_file, self._pieces = "", False, []

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            given = parameters(self._value.decode("utf-8", "replace"))[1]
            self._name = given.get("name", "")
            self._is_file = "filename" in given or "filename*" in given
        self._header.clear()
        self._value.clear()

    def _take(self, data: bytes, start: int, end: int) -> None:
        # `data` is the whole body, which the parser got at once. A view of it copies nothing.
        self._pieces.append(self._view[start:end])

    def _end_part(self) -> None:
        one = self._pieces[0] if len(self._pieces) == 1 else memoryview(b"".join(self._pieces))
        self.parts.append(Part(self._name, self._is_file, one))

    def _end(self) -> None:
        self.ended = True


def _parts(body: Body, boundary: bytes, most: int) -> list[Part]:
    # Chance makes no boundary within content. Where it stands there a million times, each costs the
    # parser some steps of Python, and counting them costs next to nothing.
    if body.count(b"--" + boundary) > most + _MOST_MISTAKEN:
        raise InvalidMultipart("the form is not well-formed: its boundary is part of its content")
    reader = _Reader(body, most)
    try:
        MultipartParser(boundary, reader.callbacks()).write(body)  # type: ignore[arg-type]  # it reads
    except FormParserError:
        raise InvalidMultipart("the body is not well-formed multipart/form-data") from None
    if not reader.ended:
        raise InvalidMultipart("the form ends too early: its last boundary is missing")
    return reader.parts
