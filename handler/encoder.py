"""Images and texts in, unit vectors out: the one path that every way into the service shares."""

import logging
from collections.abc import Sequence
from typing import cast

from handler import health, telemetry
from handler.budget import Budget
from handler.config import Config, starts_ahead
from handler.engines import Embedding, Engine, Turns, load_engine
from handler.errors import ModelUnhealthy, NoSuchTower
from handler.images import sandbox, walls
from handler.images.processes import Zygote
from handler.images.s3 import Image
from handler.images.sandbox import Decoder, Sandbox
from handler.model import Model, ModelError
from handler.outcome import Outcome
from handler.text.tokenizer import Tokens
from handler.towers import check_files
from handler.towers.image import ImageTower
from handler.towers.text import TextTower

Item = Image | Tokens | Embedding
"""An image, a text's tokens, or a vector that is one already."""

log = logging.getLogger("clip")


class Encoder:
    """Encodes images and texts with the towers that there are; thread-safe."""

    def __init__(
        self, engine: Engine | None, model: Model, config: Config, decoder: Decoder | None = None
    ) -> None:
        """Take a loaded engine of the image tower, and a decoder, by default a new one.

        `engine` is None where no images are served. The towers run their self-checks: that of
        images now, that of texts when the first text comes.
        """
        self.model = model
        self.config = config
        # An inference uses every CPU: two at once would only wait for each other.
        self._one_at_a_time = Turns()
        self.images: ImageTower | None = None
        if engine is not None:
            decoder = decoder or sandbox.start(config, model.architecture.resolution)
            self.images = ImageTower(engine, model, config, decoder, self._one_at_a_time)
        self.texts: TextTower | None = None
        if "text" in served(config, model):
            self.texts = TextTower(model, config, self._one_at_a_time)

    @property
    def fingerprint(self) -> str:
        """Names what decides an image's vector or, where no images are served, a text's."""
        tower = self.images or self.texts
        return (tower and tower.fingerprint) or ""

    @property
    def fault(self) -> str | None:
        """What the self-checks have found so far, in words for the log; None: nothing."""
        towers = [tower for tower in (self.images, self.texts) if tower]
        return next((tower.fault for tower in towers if tower.fault), None)

    def health(self) -> dict[str, object]:
        """The health body; see `health.report`."""
        return health.report(self.model, self.images, self.texts)

    def inference_seconds(self) -> float:
        """For how long the inference of this moment has been going on; 0 while there is none."""
        return self._one_at_a_time.seconds()

    def processes(self) -> list[int]:
        """Return the ids of the processes that decode images; none where the service does."""
        decoder = self.images.decoder if self.images else None
        return decoder.processes() if isinstance(decoder, Sandbox) else []

    def tokenize(self, text: str, truncate: bool = False, budget: Budget | None = None) -> Tokens:
        """A text -> its tokens.

        Raises:
            TextTooLong: over 77 tokens, unless `truncate`, or over 10,000 characters.
            NoSuchTower: no texts are served.
            OutOfTime: `budget` is spent.
            ModelUnhealthy: the text tower cannot be used.
        """
        if self.texts is None:
            raise NoSuchTower("this service encodes images only: it has no text tower")
        return self.texts.tokenize(text, truncate, budget or Budget())

    def tokenize_all(
        self, texts: Sequence[Outcome[str]], truncate: bool = False, budget: Budget | None = None
    ) -> list[Outcome[Tokens]]:
        """Make the tokens of many texts, one outcome each, in order; see `tokenize`."""

        def tokenize(text: str) -> Tokens:
            return self.tokenize(text, truncate, budget)

        return [text.then(tokenize) for text in texts]

    def encode(self, item: Image | Tokens, budget: Budget | None = None) -> Embedding:
        """One image (its file's bytes, or its place in S3) or text -> a vector of unit length.

        Raises:
            RequestError: it cannot be encoded, and why.
            SourceUnavailable: S3 did not deliver the image.
            OutOfTime: `budget` is spent.
            ModelUnhealthy: the self-check failed.
        """
        if isinstance(item, Tokens):
            (outcome,) = self.encode_texts([Outcome(item)], budget)
        else:
            (outcome,) = self.encode_images([Outcome(item)], budget)
        return outcome.get()

    def encode_images(
        self, images: Sequence[Outcome[Image]], budget: Budget | None = None
    ) -> list[Outcome[Embedding]]:
        """Encode many images, one outcome each, in order; see `ImageTower.encode`.

        Raises:
            ModelUnhealthy: the self-check failed.
        """
        outcomes: list[Outcome[Embedding]]
        if self.images is None:
            error = NoSuchTower("this service encodes texts only: it has no image tower")
            outcomes = [Outcome(error=image.error or error) for image in images]
        elif self.images.fault:
            raise ModelUnhealthy(
                "the model failed its start-up self-check; see /health and the log"
            )
        else:
            outcomes = self.images.encode(images, self.config, budget or Budget())
        telemetry.count(images=len(outcomes), failed=_failed(outcomes))
        return outcomes

    def encode_texts(
        self, texts: Sequence[Outcome[Tokens]], budget: Budget | None = None
    ) -> list[Outcome[Embedding]]:
        """Encode many texts, one outcome each, in order; see `TextTower.encode`.

        Raises:
            ModelUnhealthy: the text tower cannot be used.
        """
        outcomes: list[Outcome[Embedding]]
        if self.texts is None:  # then `tokenize` has said so, text by text
            outcomes = [Outcome(error=text.error) for text in texts]
        else:
            outcomes = self.texts.encode(texts, budget or Budget())
        cut = sum(text.value.truncated for text in texts if text.value)
        telemetry.count(texts=len(outcomes), failed=_failed(outcomes), truncated=cut)
        return outcomes

    def encode_all(
        self, items: Sequence[Outcome[Item]], budget: Budget | None = None
    ) -> list[Outcome[Embedding]]:
        """Encode images and texts, and pass on vectors, one outcome each, in order.

        Raises:
            ModelUnhealthy: a tower that is needed cannot be used.
        """
        for item in items:
            if isinstance(item.error, ModelUnhealthy):
                item.get()  # it raises: a tower at fault is no fault of an item
        tokens = {i: item for i, item in enumerate(items) if isinstance(item.value, Tokens)}
        images = {i: item for i, item in enumerate(items) if isinstance(item.value, Image)}
        outcomes = {i: cast(Outcome[Embedding], item) for i, item in enumerate(items)}
        telemetry.count(failed=sum(item.error is not None for item in items))
        if tokens:
            texts = cast(list[Outcome[Tokens]], list(tokens.values()))
            outcomes |= zip(tokens, self.encode_texts(texts, budget), strict=True)
        if images:
            files = cast(list[Outcome[Image]], list(images.values()))
            outcomes |= zip(images, self.encode_images(files, budget), strict=True)
        return list(outcomes.values())

    def fingerprints(self, items: Sequence[Outcome[Item]]) -> list[str]:
        """Name what makes the vectors of `items`: of the images among them, then of the texts."""
        values = [item.value for item in items]
        found = []
        if self.images and any(isinstance(value, Image) for value in values):
            found.append(self.images.fingerprint)
        if self.texts and self.texts.fingerprint and any(isinstance(v, Tokens) for v in values):
            found.append(self.texts.fingerprint)
        return found


def _failed(outcomes: Sequence[Outcome[Embedding]]) -> int:
    return sum(outcome.error is not None for outcome in outcomes)


def served(config: Config, model: Model) -> tuple[str, ...]:
    """The towers that this service has: those of the settings or, by default, of the model folder.

    Raises:
        ModelError: the settings name one that the folder was exported without.
    """
    towers = config.towers or tuple(model.towers)
    for tower in towers:
        if tower not in model.towers:
            raise ModelError(
                f"CLIP_TOWERS names {tower}, but {model.directory} was exported without it: "
                "export it again with --towers image,text"
            )
    return towers


def _check_name(config: Config, model: Model) -> None:
    """Refuse a model folder that holds another model than the settings name.

    Raises:
        ModelError: it does.
    """
    if config.model not in ("", model.slug):
        raise ModelError(
            f"CLIP_MODEL names {config.model}, but {model.directory} holds {model.slug}: "
            "deploy with the model that the image was built with, or build the other one"
        )


def load_encoder(config: Config, zygote: Zygote | None = None) -> Encoder:
    """Model folder -> primed encoder; `zygote` is what `sandbox.prepare` gave, if it was called.

    Raises:
        ModelError: the model folder cannot be used, or not with these settings.
        SandboxError: the settings require a wall around decoders that does not hold.
        ImportError: the engine asked for is not installed.
    """
    model = Model.load(config.model_dir)
    _check_name(config, model)
    towers = served(config, model)
    for tower in towers:
        check_files(config, model, tower)
    if "image" in towers:
        decoder = sandbox.start(config, model.architecture.resolution, zygote)
        encoder = Encoder(load_engine(config, model), model, config, decoder)
        if config.sandbox == "required":
            walls.require_all(decoder.walls or walls.NONE)
    else:
        if zygote:
            zygote.close()
        encoder = Encoder(None, model, config)
    if encoder.texts and (encoder.images is None or starts_ahead()):
        encoder.texts.load()
    if model.weights == "synthetic":
        log.warning("the weights are SYNTHETIC: vectors are well-formed but mean nothing")
    return encoder


def load_from_env(zygote: Zygote | None = None) -> Encoder:
    """Settings of the environment -> primed encoder; what prevents it is one line in the log."""
    try:
        config = Config.from_env()
        telemetry.configure(config.log_level)
        return load_encoder(config, zygote)
    except Exception as error:
        telemetry.configure("INFO")
        log.critical("the service cannot start: %s", error)
        raise
