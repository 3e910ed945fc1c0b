"""What a body holds, by its Content-Type, and every word that a sender is told who got it wrong."""

import re

import pytest

from handler.errors import ClipError, InvalidField, InvalidMultipart, TooManyImages
from handler.http.bodies import FORM, multipart_parts, read_image, read_images

BOUNDARY = "xyz"
TYPE = f"{FORM}; boundary={BOUNDARY}"
LONG = "long" * 16 + "er"
"""A name of 66 characters, of which an error names 64."""


def form(*parts: tuple[str, bytes], file: bool = True) -> bytes:
    named = '; filename="a.jpg"' if file else ""
    return (
        b"".join(
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
            + content
            + b"\r\n"
            for name, content in parts
        )
        + f"--{BOUNDARY}--\r\n".encode()
    )


FORMS = (
    'send multipart/form-data with a field "image", application/json, or the bytes of an image '
    "as image/jpeg, image/png or application/octet-stream"
)
LOOKS_LIKE_JSON = "the body looks like JSON, so send the header Content-Type: application/json"
TEXT = (
    "the field 'image' is text: put @ before the file's name (curl -F image=@photo.jpg); "
    "base64 and s3:// are sent as JSON"
)


@pytest.mark.parametrize(
    ("content_type", "body", "detail"),
    [
        ("", b"x", f"there is no Content-Type: {FORMS}"),
        ("text/html", b"x", f"the Content-Type 'text/html' is not read here: {FORMS}"),
        ("x/" + 99 * "y", b"", f"the Content-Type 'x/{62 * 'y'}' is not read here: {FORMS}"),
        ("", b" \n{}", f"there is no Content-Type: {LOOKS_LIKE_JSON}"),
        ("", b"[]", f"there is no Content-Type: {LOOKS_LIKE_JSON}"),
        ("", b" " * 63 + b"[", f"there is no Content-Type: {LOOKS_LIKE_JSON}"),
        ("", b" " * 64 + b"[", f"there is no Content-Type: {FORMS}"),
        (
            "application/x-www-form-urlencoded",
            b"x",
            "the Content-Type 'application/x-www-form-urlencoded' is not read here: such a form "
            "carries no files. With curl, send one with -F image=@photo.jpg, or JSON with "
            "-H 'Content-Type: application/json' -d '{...}'",
        ),
        (FORM, b"x", "the Content-Type has no boundary: let your HTTP client set it"),
        (TYPE, b"x", "the body is not well-formed multipart/form-data"),
        (TYPE, form(("image", b"x"))[:-8], "the form ends too early: its last boundary is missing"),
        (
            TYPE,
            form(("image", b"--xyz" * 200)),
            "the form is not well-formed: its boundary is part of its content",
        ),
        (
            TYPE,
            form(*[("image", b"x")] * 17),
            "more than 16 parts in one form: send several requests",
        ),
        (
            TYPE,
            form(("image", b"x"), ("image", b"x")),
            "the form has 2 parts named 'image': send one, or name them 'images' and send them to "
            "/encode_images",
        ),
        (
            TYPE,
            form(("images", b"x")),
            "no part named 'image' in the form: name it so, or send it to /encode_images",
        ),
        (TYPE, form(), "no part named 'image' in the form: name it so; parts sent: none"),
        (
            TYPE,
            form(("b", b""), ("a", b""), (LONG, b""), ("", b"")),
            f"no part named 'image' in the form: name it so; parts sent: 'a', 'b', '{LONG[:64]}'",
        ),
        (
            TYPE,
            form(*[(f"{number:02}", b"") for number in range(16)]),
            "no part named 'image' in the form: name it so; parts sent: "
            + ", ".join(f"'{number:02}'" for number in range(10)),
        ),
        (TYPE, form(("image", b"photo.jpg"), file=False), TEXT),
        (TYPE, form(("image", "Käse.jpg\r\n".encode()), file=False), TEXT),
        (TYPE, form(("image", b"x" * 256 + b"\0"), file=False), TEXT),
    ],
)
def test_what_is_wrong_is_said_word_for_word(content_type: str, body: bytes, detail: str) -> None:
    with pytest.raises(ClipError) as caught:
        read_image(content_type, body)
    assert caught.value.detail == detail


def test_a_batch_says_the_same_in_its_own_words() -> None:
    expected = {
        (TYPE, form(("image", b"x"))): (
            "no part named 'images' in the form: name it so, or send it to /encode_image"
        ),
        ("image/jpeg", b"\xff"): (
            "the Content-Type 'image/jpeg' is not read here: send multipart/form-data with fields "
            '"images", or application/json'
        ),
    }
    for (content_type, body), detail in expected.items():
        with pytest.raises(ClipError) as caught:
            read_images(content_type, body, 4)
        assert caught.value.detail == detail


def test_a_long_name_is_cut_wherever_it_is_said() -> None:
    text, good = read_images(TYPE, form(("images", b"photo.jpg"), file=False), 4), LONG[:64]
    assert isinstance(text[0].error, InvalidField)
    with pytest.raises(InvalidField) as caught:
        multipart_parts(TYPE, form((LONG, b"photo.jpg"), file=False), LONG)[0].image()
    assert caught.value.detail == TEXT.replace("image", good)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"x\0", b"x" * 255 + b"\0"])
def test_what_is_no_text_may_be_an_image_also_without_a_file_name(content: bytes) -> None:
    (part,) = multipart_parts(TYPE, form(("image", content), file=False), "image")
    assert not part.is_file
    assert part.image() == content  # a view of it


PIECES = [
    *(f"\r\n--{BOUNDARY}"[:length].encode() for length in range(1, 7)),
    b"\r\n--xy-\r\n--xyx",
    b"\r\r\n\n--",
    bytes(range(256)),
]


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("piece", PIECES)
def test_content_that_begins_like_a_boundary_stays_whole(piece: bytes, kind: type) -> None:
    """Wherever in the content it stands, and as often."""
    for content in (piece, b"a" + piece, piece + b"a", b"a" + piece + b"bc" + piece):
        parts = multipart_parts(TYPE, kind(form(("image", content), ("image", b"next"))), "image")
        assert [bytes(part.data) for part in parts] == [content, b"next"]


def test_content_in_one_piece_is_not_copied() -> None:
    body = bytearray(form(("image", b"content")))
    (part,) = multipart_parts(TYPE, body, "image")
    body[body.index(b"content")] = ord("C")
    assert bytes(part.data) == b"Content"


def test_headers_of_parts_are_read_as_browsers_write_them() -> None:
    body = (
        b"--xyz\r\ncontent-type: image/jpeg\r\nCONTENT-DISPOSITION: form-data; name=image; "
        b"filename*=utf-8''a\r\nX-Other: name=other\r\n\r\nx\r\n"
        b'--xyz\r\nContent-Disposition: form-data; name="\xc3\xa4"\r\n\r\n1\r\n'
        b'--xyz\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n2\r\n'
        b"--xyz\r\nContent-Disposition: form-data\r\n\r\n3\r\n"
        b"--xyz\r\n\r\n4\r\n--xyz--"
    )
    expected = {"image": b"x", "ä": b"1", "\N{REPLACEMENT CHARACTER}": b"2"}
    for name, content in expected.items():
        (part,) = multipart_parts(TYPE, body, name)
        assert (bytes(part.data), part.is_file) == (content, name == "image")
    assert [bytes(part.data) for part in multipart_parts(TYPE, body, "")] == [b"3", b"4"]


def test_as_many_parts_as_the_limit_and_boundaries_by_mistake() -> None:
    assert len(multipart_parts(TYPE, form(*[("image", b"x")] * 3), "image", most=3)) == 3
    with pytest.raises(TooManyImages, match="more than 3 parts"):
        multipart_parts(TYPE, form(*[("image", b"x")] * 4), "image", most=3)
    good = form(("image", b"--xyz" * 101))  # with those that part it, 103 of at most 3 + 100
    assert len(multipart_parts(TYPE, good, "image", most=3)) == 1
    with pytest.raises(InvalidMultipart, match=re.escape("its boundary is part of its content")):
        multipart_parts(TYPE, form(("image", b"--xyz" * 102)), "image", most=3)
