"""The encoder in this process, where its package ``handler`` is installed; no server is needed."""

import os
from typing import Any

from clip_encoder.errors import EncoderError
from clip_encoder.protocol import Answer, Call, Limits, fingerprint_of


class LocalTransport:
    """A model folder loaded here, asked as a Lambda function is. Thread-safe."""

    def __init__(self, model_dir: str) -> None:
        """Load the folder that the service's export made; settings come from ``CLIP_*`` variables.

        Raises:
            EncoderError: the package is not installed, or the folder cannot be used.
        """
        self.limits = Limits(body_bytes=2**26)  # nothing is carried anywhere
        try:
            from handler.config import Config, ConfigError
            from handler.encoder import load_encoder
            from handler.model import ModelError
        except ImportError as error:
            raise EncoderError(
                "missing_package", f"local: needs the service's own package here: {error}"
            ) from error
        try:
            where = {"CLIP_MODEL_DIR": model_dir} if model_dir else {}
            config = Config.from_env({**os.environ, **where})
            self._encoder: Any = load_encoder(config)
        except (ConfigError, ModelError) as error:
            raise EncoderError("model_unusable", str(error)) from error

    def send(self, call: Call) -> Answer:
        """Answer one request; see `protocol.Transport`."""
        from handler.errors import ClipError
        from handler.events import direct

        try:
            body = direct.invoke(call.event, None, self._encoder)
        except ClipError as error:
            raise EncoderError(error.code, error.detail, error.status) from error
        return Answer(body, fingerprint_of(self._encoder.health(), call.tower))

    def close(self) -> None:
        """End the processes that decode."""
        if self._encoder.images is not None:
            self._encoder.images.decoder.close()
