"""The bodies of requests: which image, or images, a request of a given Content-Type holds."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from handler import schemas
from handler.errors import InvalidMultipart, MissingField, TooManyImages, UnsupportedMediaType
from handler.images.s3 import Image
from handler.outcome import Outcome

OCTETS = "application/octet-stream"


def read_image(content_type: str, body: bytes) -> Image:
    """The one image of a request, in whichever of the three forms it came."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return multipart_parts(content_type, body, "image")[0]
    if kind == "application/json":
        return schemas.validate(schemas.EncodeRequest, body).read()
    if kind.startswith("image/") or kind == OCTETS:
        return body
    raise UnsupportedMediaType(
        f"the Content-Type {kind[:64]!r} is not read here: send multipart/form-data with a field "
        '"image", application/json with {"image": "<base64>"}, image/* or application/octet-stream'
    )


def read_images(content_type: str, body: bytes, limit: int) -> list[Outcome[Image]]:
    """The images of a batch request, in order."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        parts = multipart_parts(content_type, body, "images", most=2 * limit)
        schemas.check_count(len(parts), limit)
        return [Outcome(part) for part in parts]
    if kind == "application/json":
        request = schemas.validate(schemas.EncodeBatchRequest, body)
        return schemas.read_images(request.images, limit)
    raise UnsupportedMediaType(
        f"the Content-Type {kind[:64]!r} is not read here: send multipart/form-data with fields "
        '"images", or application/json with {"images": ["<base64>", ...]}'
    )


def multipart_parts(content_type: str, body: bytes, field: str, most: int = 16) -> list[bytes]:
    """The bytes of every part named `field`, in order; of all names, at most `most` parts.

    Raises:
        InvalidMultipart: no boundary, or malformed.
        MissingField: no such part.
        TooManyImages: more parts than `most`.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidMultipart("the Content-Type has no boundary: let your HTTP client set it")
    parts = _parse_multipart(boundary, body, most)
    found = [bytes(data) for name, data in parts if name == field]
    if not found:
        names = ", ".join(sorted({repr(name[:64]) for name, _ in parts if name})[:10]) or "none"
        raise MissingField(f"no part named {field!r} in the form; parts sent: {names}")
    return found


def _parse_multipart(boundary: bytes, body: bytes, most: int) -> list[tuple[str, bytearray]]:
    """(name, data) of every part. The body is in memory already: no temporary files."""
    parts: list[tuple[str, bytearray]] = []
    header, value = bytearray(), bytearray()
    ended = False

    def on_header_end() -> None:
        if header.lower() == b"content-disposition":
            name = parse_options_header(bytes(value))[1].get(b"name", b"")
            parts[-1] = (name.decode("utf-8", "replace"), bytearray())
        header.clear()
        value.clear()

    def on_part_begin() -> None:
        parts.append(("", bytearray()))
        if len(parts) > most:
            raise TooManyImages(f"more than {most} parts in one form: send several requests")

    def on_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": on_part_begin,
                "on_part_data": lambda data, start, end: parts[-1][1].extend(data[start:end]),
                "on_header_field": lambda data, start, end: header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: value.extend(data[start:end]),
                "on_header_end": on_header_end,
                "on_end": on_end,
            },
        )
        parser.write(body)
    except FormParserError:
        ended = False
    if not ended:
        raise InvalidMultipart("the body is not well-formed multipart/form-data, or ends too early")
    return parts
