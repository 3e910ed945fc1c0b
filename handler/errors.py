"""Everything that can go wrong, as the caller sees it.

::

    ClipError                    code                    HTTP  retryable
    ├── RequestError                                           the caller's fault: never retry as is
    │   ├── InvalidEvent         invalid_event           400
    │   ├── InvalidJson          invalid_json            400
    │   ├── InvalidMultipart     invalid_multipart       400
    │   ├── InvalidBase64        invalid_base64          400
    │   ├── MissingField         missing_field           400
    │   ├── InvalidField         invalid_field           400
    │   ├── BodyTooLarge         body_too_large          413
    │   ├── ImageTooLarge        image_too_large         413
    │   ├── TooManyPixels        too_many_pixels         413
    │   ├── TooManyImages        too_many_images         413
    │   ├── UnsupportedType      unsupported_media_type  415
    │   ├── NotAnImage           not_an_image            422
    │   ├── UnsupportedFormat    unsupported_format      422
    │   ├── InvalidImage         invalid_image           422
    │   ├── TruncatedImage       truncated_image         422
    │   └── ExtremeShape         extreme_shape           422
    └── ServiceError                                           our fault: the same request may work later
        ├── InternalError        internal_error          500  yes
        └── ModelUnhealthy       model_unhealthy         503  yes

``detail`` is written for the caller: what was wrong and what to send instead. It never holds
payloads, paths or the names of internals.
"""

from typing import ClassVar


class ClipError(Exception):
    """An error with a stable ``code``, an HTTP ``status`` and a ``detail`` fit for the caller."""

    code: ClassVar[str]
    status: ClassVar[int]
    retryable: ClassVar[bool]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        """``code: detail``, which is what a direct invoke shows as ``errorMessage``."""
        return f"{self.code}: {self.detail}"

    def body(self) -> dict[str, str]:
        """The error as every transport writes it."""
        return {"code": self.code, "detail": self.detail}


class RequestError(ClipError):
    """The request cannot be served as it is."""

    retryable = False


class InvalidEvent(RequestError):
    """A Lambda event of no known kind, or of a known kind but malformed."""

    code, status = "invalid_event", 400


class InvalidJson(RequestError):
    """The body is not JSON, or not a JSON object."""

    code, status = "invalid_json", 400


class InvalidMultipart(RequestError):
    """The body is not the multipart/form-data its Content-Type promises."""

    code, status = "invalid_multipart", 400


class InvalidBase64(RequestError):
    """An image string is neither base64 nor a base64 data: URI."""

    code, status = "invalid_base64", 400


class MissingField(RequestError):
    """A required field is absent or empty."""

    code, status = "missing_field", 400


class InvalidField(RequestError):
    """A field is unknown or of the wrong type."""

    code, status = "invalid_field", 400


class BodyTooLarge(RequestError):
    """The request body is over ``CLIP_MAX_BODY_BYTES``."""

    code, status = "body_too_large", 413


class ImageTooLarge(RequestError):
    """An encoded image is over ``CLIP_MAX_IMAGE_BYTES``."""

    code, status = "image_too_large", 413


class TooManyPixels(RequestError):
    """An image is over ``CLIP_MAX_PIXELS``."""

    code, status = "too_many_pixels", 413


class TooManyImages(RequestError):
    """A batch is over ``CLIP_MAX_IMAGES``."""

    code, status = "too_many_images", 413


class UnsupportedType(RequestError):
    """The Content-Type is none of those the route reads."""

    code, status = "unsupported_media_type", 415


class NotAnImage(RequestError):
    """The bytes begin like no image format."""

    code, status = "not_an_image", 422


class UnsupportedFormat(RequestError):
    """An image, but of a format that is not served."""

    code, status = "unsupported_format", 422


class InvalidImage(RequestError):
    """The bytes begin like an image but cannot be decoded."""

    code, status = "invalid_image", 422


class TruncatedImage(RequestError):
    """The image ends before its data is complete."""

    code, status = "truncated_image", 422


class ExtremeShape(RequestError):
    """The aspect ratio is over ``CLIP_MAX_ASPECT_RATIO``."""

    code, status = "extreme_shape", 422


class ServiceError(ClipError):
    """The service failed; the request may be fine."""

    retryable = True


class InternalError(ServiceError):
    """A fault of ours. The log has the context; the caller does not."""

    code, status = "internal_error", 500


class ModelUnhealthy(ServiceError):
    """The start-up self-check failed: no vector is better than a wrong one."""

    code, status = "model_unhealthy", 503
