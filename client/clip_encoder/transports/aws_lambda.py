"""The Lambda function called directly, without API Gateway: cheaper, and without its 30 seconds."""

import json
import re
import threading
import time
from typing import Any

from clip_encoder.errors import EncoderError, Refused, Unreachable
from clip_encoder.protocol import HEALTH, Answer, Call, Limits, Tower, fingerprint_of

try:
    import boto3  # this module is imported by those who call functions only
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError
except ImportError as error:
    raise EncoderError(
        "missing_package", "calling a Lambda function needs boto3: pip install 'clip-encoder[aws]'"
    ) from error

UNVERSIONED = "$LATEST"
"""What Lambda calls the code that no version holds. It may be replaced at any time."""
TRUSTED_SECONDS = 60.0
"""For so long the fingerprint of code without a version is taken to be what it was."""
ATTEMPTS = 20
"""Times that an alias which shares its calls among versions is asked, until a given one answers."""
_CODED = re.compile(r"([a-z0-9_]+): (.*)", re.DOTALL)
"""The text of an error that the function raised itself."""


class LambdaTransport:
    """Direct invokes of one function. Thread-safe.

    A direct answer holds no fingerprint, but AWS says which version of the function gave it. So the
    function's health, which names the fingerprint, is asked for once for each version that answers;
    and once a minute where the answers come from no version, because the function was named without
    an alias.
    """

    def __init__(self, function: str, timeout: float, connections: int) -> None:
        """Take the function's name, ``name:alias`` or ARN, and seconds to wait for an answer.

        Raises:
            Refused: the environment names no region.
        """
        self.limits = Limits(is_strict=True)
        self._function = function
        settings = Config(
            read_timeout=timeout,
            connect_timeout=timeout,
            max_pool_connections=connections,
            retries={"total_max_attempts": 1},  # ours are the same over every transport
        )
        try:
            self._lambda = boto3.client("lambda", config=settings)
        except NoRegionError as error:
            raise Refused(
                "forbidden", "no AWS region in the environment: set AWS_REGION"
            ) from error
        self._known: dict[str, tuple[dict[str, Any], float]] = {}
        """Version -> its health, and when it was asked for."""
        self._asking = threading.Lock()

    def send(self, call: Call) -> Answer:
        """Send one request; see `protocol.Transport`."""
        body, version = self._invoke(call.event)
        if call.tower is None:
            return Answer(body, None)
        with self._asking:
            return Answer(body, self._fingerprint(version, call.tower))

    def close(self) -> None:
        """Close the connections."""
        self._lambda.close()

    def _fingerprint(self, version: str, tower: Tower) -> str | None:
        """The fingerprint of the vectors of `tower` that `version` makes.

        None where that is not known yet: each instance of a function learns its texts' fingerprint
        with its first text.
        """
        for _ in range(ATTEMPTS):
            if version in self._known:
                health, asked_at = self._known[version]
                found = fingerprint_of(health, tower)
                is_fresh = time.monotonic() - asked_at < TRUSTED_SECONDS
                if is_fresh or (found is not None and version != UNVERSIONED):
                    return found
            health, answered = self._invoke(HEALTH.event)
            self._known[answered] = (health, time.monotonic())
        raise EncoderError(
            "fingerprint_unknown", f"version {version} of {self._function} no longer answers"
        )

    def _invoke(self, event: dict[str, Any]) -> tuple[Any, str]:
        """The answer to one event, and the version of the function that gave it."""
        try:
            answer = self._lambda.invoke(
                FunctionName=self._function, Payload=json.dumps(event, separators=(",", ":"))
            )
            body = json.load(answer["Payload"])
        except ClientError as error:
            raise _refusal(error) from error
        except NoCredentialsError as error:
            raise Refused("forbidden", "no AWS credentials in the environment") from error
        except BotoCoreError as error:  # no connection, no answer in time
            raise Unreachable(f"{self._function}: {error}") from error
        # ``sam local`` and the emulator do not say ``FunctionError``, so the body is looked at.
        if isinstance(body, dict) and "errorMessage" in body:
            raise _raised(body)
        return body, answer.get("ExecutedVersion", UNVERSIONED)


def _refusal(error: ClientError) -> EncoderError:
    """Lambda's own error, in the place of an answer of the function."""
    status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    code = error.response["Error"]["Code"]
    detail = f"Lambda answered {code}: {error.response['Error']['Message']}"
    if status == 413:
        return EncoderError("body_too_large", detail, status)
    if status == 429:
        return EncoderError("too_many_requests", detail, status)
    # 409: the function is being made ready, after weeks without a call or a deployment.
    if status == 409 or status >= 500:
        return EncoderError("function_error", detail, status)
    return Refused("forbidden" if status == 403 else f"http_{status}", detail, status)


def _raised(body: dict[str, Any]) -> EncoderError:
    """What the function raised, or what Lambda says of a function that crashed or took too long."""
    message = str(body["errorMessage"])
    coded = _CODED.fullmatch(message)
    if coded:
        return EncoderError(coded[1], coded[2])
    return EncoderError("function_error", message)
