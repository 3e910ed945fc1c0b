"""The ways to the service: over HTTP, straight to a Lambda function, and in this process."""

from clip_encoder.protocol import Transport

LAMBDA, LOCAL = "lambda://", "local:"


def connect(
    address: str, *, api_key: str | None, sigv4: bool, timeout: float, connections: int
) -> Transport:
    """The way that `address` names.

    Raises:
        ValueError: it names none, or one that has no use for an API key or a signature.
        EncoderError: a package that it needs is not installed, or the model cannot be loaded.
    """
    # Each is imported where it is chosen: two of them need packages of their own.
    if address.startswith(("http://", "https://")):
        from clip_encoder.transports.http import HttpTransport

        return HttpTransport(address, api_key, sigv4, timeout, connections)
    if api_key or sigv4:
        raise ValueError("an API key and a signature are for http:// and https:// addresses")
    if address.startswith(LAMBDA):
        from clip_encoder.transports.aws_lambda import LambdaTransport

        return LambdaTransport(address.removeprefix(LAMBDA), timeout, connections)
    if address.startswith(LOCAL):
        from clip_encoder.transports.local import LocalTransport

        return LocalTransport(address.removeprefix(LOCAL))
    raise ValueError(
        f"{address!r} is no address of the service: give http://host:port, https://..., "
        "lambda://function:alias or local:folder-of-the-model"
    )
