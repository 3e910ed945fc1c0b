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
    │   ├── SourceNotAllowed     source_not_allowed      403
    │   ├── SourceDenied         source_denied           403
    │   ├── SourceNotFound       source_not_found        404
    │   ├── ModelNotFound        model_not_found         404
    │   ├── BodyTooSlow          body_too_slow           408
    │   ├── BodyTooLarge         body_too_large          413
    │   ├── ImageTooLarge        image_too_large         413
    │   ├── TooManyPixels        too_many_pixels         413
    │   ├── TooManyImages        too_many_images         413
    │   ├── TooManyTexts         too_many_texts          413
    │   ├── ResultTooLarge       result_too_large        413
    │   ├── UnsupportedMediaType unsupported_media_type  415
    │   ├── NotAnImage           not_an_image            422
    │   ├── UnsupportedFormat    unsupported_format      422
    │   ├── InvalidImage         invalid_image           422
    │   ├── TruncatedImage       truncated_image         422
    │   ├── ExtremeShape         extreme_shape           422
    │   ├── ImageTooCostly       image_too_costly        422
    │   ├── TextTooLong          text_too_long           422
    │   ├── TextTooCostly        text_too_costly         422
    │   └── NoSuchTower          no_such_tower           422
    └── ServiceError                                           our fault: it may work later
        ├── InternalError        internal_error          500  yes
        ├── ModelUnhealthy       model_unhealthy         503  yes
        ├── Overloaded           overloaded              503  yes
        ├── OutOfTime            out_of_time             503  yes
        ├── SourceUnavailable    source_unavailable      503  yes
        ├── SourceChanged        source_changed          503  yes
        ├── OutputUnavailable    output_unavailable      503  yes
        └── OutputRefused        output_refused          500  no

``detail`` is written for the caller: what was wrong and what to send instead. It never holds
payloads, paths or the names of internals. ``code`` is part of the interface and never changes.
"""

from typing import Any, ClassVar


class ClipError(Exception):
    """An error with a stable ``code``, an HTTP ``status`` and a ``detail`` fit for the caller."""

    code: ClassVar[str]
    status: ClassVar[int]
    retryable: ClassVar[bool]

    def __init_subclass__(cls, code: str = "", status: int = 500, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.code = code
        cls.status = status

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


class ServiceError(ClipError):
    """The service failed; the request may be fine."""

    retryable = True


class InvalidEvent(RequestError, code="invalid_event", status=400):
    """A Lambda event of no known kind, or of a known kind but malformed."""


class InvalidJson(RequestError, code="invalid_json", status=400):
    """The body is not JSON, or not a JSON object."""


class InvalidMultipart(RequestError, code="invalid_multipart", status=400):
    """The body is not the multipart/form-data its Content-Type promises."""


class InvalidBase64(RequestError, code="invalid_base64", status=400):
    """An image string is neither base64 nor a base64 data: URI."""


class MissingField(RequestError, code="missing_field", status=400):
    """A required field is absent or empty."""


class InvalidField(RequestError, code="invalid_field", status=400):
    """A field is unknown or of the wrong type."""


class SourceNotAllowed(RequestError, code="source_not_allowed", status=403):
    """An S3 object outside ``CLIP_S3_BUCKETS``."""


class SourceDenied(RequestError, code="source_denied", status=403):
    """S3 denies the object to this service, or keeps it archived."""


class SourceNotFound(RequestError, code="source_not_found", status=404):
    """S3 has no such object, or no such version of it."""


class ModelNotFound(RequestError, code="model_not_found", status=404):
    """A request in OpenAI's shape names a model that is not served here."""


class BodyTooSlow(RequestError, code="body_too_slow", status=408):
    """The request body did not arrive within ``CLIP_BODY_SECONDS``, or held up those that did."""


class BodyTooLarge(RequestError, code="body_too_large", status=413):
    """The request body is over ``CLIP_MAX_BODY_BYTES``."""


class ImageTooLarge(RequestError, code="image_too_large", status=413):
    """An encoded image is over ``CLIP_MAX_IMAGE_BYTES``."""


class TooManyPixels(RequestError, code="too_many_pixels", status=413):
    """An image is over ``CLIP_MAX_PIXELS``."""


class TooManyImages(RequestError, code="too_many_images", status=413):
    """A batch is over ``CLIP_MAX_IMAGES``."""


class TooManyTexts(RequestError, code="too_many_texts", status=413):
    """A request has more texts than ``CLIP_MAX_TEXTS``."""


class ResultTooLarge(RequestError, code="result_too_large", status=413):
    """The answer might be larger than what carries it takes: Lambda, a load balancer, a Map."""


class UnsupportedMediaType(RequestError, code="unsupported_media_type", status=415):
    """The Content-Type is none of those the route reads."""


class NotAnImage(RequestError, code="not_an_image", status=422):
    """The bytes begin like no image format."""


class UnsupportedFormat(RequestError, code="unsupported_format", status=422):
    """An image, but of a format that is not served."""


class InvalidImage(RequestError, code="invalid_image", status=422):
    """The bytes begin like an image but cannot be decoded."""


class TruncatedImage(RequestError, code="truncated_image", status=422):
    """The image ends before its data is complete."""


class ExtremeShape(RequestError, code="extreme_shape", status=422):
    """The aspect ratio is over ``CLIP_MAX_ASPECT_RATIO``."""


class ImageTooCostly(RequestError, code="image_too_costly", status=422):
    """Decoding takes more than ``CLIP_DECODE_SECONDS`` or ``CLIP_DECODE_MB``."""


class TextTooLong(RequestError, code="text_too_long", status=422):
    """A text of more tokens than the model reads, or of more characters than are looked at."""


class TextTooCostly(RequestError, code="text_too_costly", status=422):
    """A text is damaged so many times over that repairing it takes too long."""


class NoSuchTower(RequestError, code="no_such_tower", status=422):
    """A text for a service that encodes images only, or the reverse."""


class InternalError(ServiceError, code="internal_error", status=500):
    """A fault of ours. The log has the context; the caller does not."""


class ModelUnhealthy(ServiceError, code="model_unhealthy", status=503):
    """A tower failed its self-check, or cannot be loaded: no vector is better than a wrong one."""


class Overloaded(ServiceError, code="overloaded", status=503):
    """``CLIP_MAX_PENDING`` requests are in progress or waiting already."""


class OutOfTime(ServiceError, code="out_of_time", status=503):
    """``CLIP_REQUEST_SECONDS`` or Lambda's time was spent when this item's turn came."""


class SourceUnavailable(ServiceError, code="source_unavailable", status=503):
    """S3 throttled the download, failed, or took too long."""


class SourceChanged(ServiceError, code="source_changed", status=503):
    """An S3 object was replaced or removed while its vector was made."""


class OutputUnavailable(ServiceError, code="output_unavailable", status=503):
    """A vector could not be written to ``CLIP_OUTPUT``, which may take it later."""


class OutputRefused(ServiceError, code="output_refused", status=500):
    """``CLIP_OUTPUT`` refuses this one vector, and would refuse it again."""

    retryable = False
