"""Requests signed with AWS's Signature Version 4, for an API or a Function URL with IAM."""

import re
from collections.abc import Generator

import httpx

from clip_encoder.errors import EncoderError, Refused

try:
    import boto3  # this module is imported by those who sign, and by nobody else
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
except ImportError as error:
    raise EncoderError(
        "missing_package", "signing needs boto3: pip install 'clip-encoder[aws]'"
    ) from error

_HOST = re.compile(r"\.(execute-api|lambda-url)\.([a-z0-9-]+)\.")
"""AWS's own hosts of an API and of a Function URL, with the region."""


class Signature(httpx.Auth):
    """Signs each request with the credentials of the environment, as boto3 finds them.

    The region and the service are read from the host's name. For a domain of your own it is API
    Gateway's service and the environment's region.
    """

    requires_request_body = True

    def __init__(self, host: str) -> None:
        self._session = boto3.Session()
        found = _HOST.search(host)
        self._region = found[2] if found else self._session.region_name
        self._service = "lambda" if found and found[1] == "lambda-url" else "execute-api"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the signature's headers to `request`.

        Raises:
            Refused: there are no credentials, or no region.
        """
        credentials = self._session.get_credentials()
        if credentials is None or self._region is None:
            missing = "credentials" if credentials is None else "region"
            raise Refused("forbidden", f"no AWS {missing} in the environment to sign requests with")
        # Signed is what no proxy on the way changes.
        headers = {"content-type": request.headers.get("content-type", "")}
        unsigned = AWSRequest(request.method, str(request.url), headers, request.content)
        SigV4Auth(credentials.get_frozen_credentials(), self._service, self._region).add_auth(
            unsigned
        )
        request.headers.update(dict(unsigned.headers.items()))
        yield request
