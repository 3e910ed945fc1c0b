"""What can go wrong, as the caller of this package sees it.

::

    EncoderError              one image, text or request failed; `code` says how
    └── ServiceUnusable       nothing further can succeed, so a run over many images ends
        ├── Unreachable       no connection, or no answer in time
        ├── Refused           an answer that is not this service's, or no permission to ask it
        └── FingerprintChanged  the vectors are of another kind than those before

``code`` is the service's own word where the service answered (``not_an_image``, ``overloaded`` and
so on: see the service's documentation), and one of these otherwise:

- ``unreadable_file``, ``invalid_text``: a file that cannot be read here, or a text that is none
- ``unreachable``; of a gateway before the service ``unauthorized``, ``forbidden``, ``not_found``,
  ``body_too_large``, ``too_many_requests``, ``quota_exceeded`` (of an API key), or ``http_502`` and
  so on by the status
- ``function_error``: the Lambda function crashed, ran out of time or is not ready yet
- ``fingerprint_changed``, ``foreign_answer`` (no answer of this service), ``missing_package``

::

    try:
        vector = client.encode_image("photo.jpg")
    except EncoderError as error:
        print(error.code, error.detail)
"""

RETRYABLE = frozenset(
    {
        *("internal_error", "model_unhealthy", "overloaded", "out_of_time"),
        *("source_unavailable", "source_changed", "function_error"),
    }
)
"""Codes after which the same request may succeed later."""


class EncoderError(Exception):
    """Something failed, with a stable ``code`` for programs and a ``detail`` for people."""

    def __init__(
        self, code: str, detail: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.status = status
        """HTTP's, where there was an answer."""
        self.retry_after = retry_after
        """Seconds that the service asks to be left alone for."""

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        if self.code in RETRYABLE:
            return True
        return self.status is not None and (self.status in (408, 429) or self.status >= 500)


class ServiceUnusable(EncoderError):
    """Nothing that is sent to this service can succeed as things are."""


class Unreachable(ServiceUnusable):
    """No connection to the service, or no answer in time."""

    def __init__(self, detail: str) -> None:
        super().__init__("unreachable", detail)

    @property
    def retryable(self) -> bool:
        """Always: the network may be there again."""
        return True


class Refused(ServiceUnusable):
    """The caller may not ask, or what answers at this address is not the service."""

    @property
    def retryable(self) -> bool:
        """Never, whatever the status: the quota of a key is used up with 429."""
        return False


class FingerprintChanged(ServiceUnusable):
    """The service makes other vectors than it did, or than were expected. Never mix the two."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(
            "fingerprint_changed",
            f"expected vectors of {expected}, and the service makes those of {found}: the two may "
            "not be mixed or compared",
        )
        self.expected = expected
        self.found = found
