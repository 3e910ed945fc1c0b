"""Texts in, unit vectors out."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from handler import telemetry
from handler.budget import Budget
from handler.config import Config
from handler.engines import Embedding, Embeddings, Engine, TokenIds, Turns, load_engine
from handler.errors import ModelUnhealthy
from handler.model import Model
from handler.outcome import Outcome
from handler.text.tokenizer import Tokenizer, Tokens
from handler.towers import self_check

CHUNK = 512
"""Most tokens of one inference: more gain no speed (see the benchmark), and make others wait."""

log = logging.getLogger("clip")


class Loaded(NamedTuple):
    """What the text tower has once its files are open."""

    tokenizer: Tokenizer
    engine: Engine


class TextTower:
    """Splits texts into tokens and encodes them; thread-safe.

    Its files are opened at the first text, not before: who sends images alone does not pay for it.
    """

    name = "text"

    def __init__(self, model: Model, config: Config, one_at_a_time: Turns) -> None:
        """Who holds `one_at_a_time` may use the engine."""
        self.fault: str | None = None
        """What is known to be wrong, in words for the log; None: nothing, or nobody looked yet."""
        self._model = model
        self._config = config
        self._one_at_a_time = one_at_a_time
        self._loading = threading.Lock()
        self._loaded: Loaded | None = None

    @property
    def fingerprint(self) -> str | None:
        """Names everything that decides a text's vector; None before the first text."""
        return self._model.text_fingerprint(self._loaded.engine.precision) if self._loaded else None

    @property
    def engine(self) -> Engine:
        """The engine, loaded now if it was not before; raises as `load`."""
        return self.load().engine

    def load(self) -> Loaded:
        """Open the tower's files and run the self-check, unless that is done.

        Raises:
            ModelError: a file is missing or unreadable.
            ImportError: what tokenizing needs is not installed.
        """
        with self._loading:
            if self._loaded is None:
                with telemetry.timed("load_ms"):
                    self._loaded = self._open()
            return self._loaded

    def tokenize(self, text: str, truncate: bool, budget: Budget) -> Tokens:
        """A text -> its tokens, as clip has them.

        Raises:
            TextTooLong: too many tokens, unless `truncate`, or too many characters.
            OutOfTime: `budget` is spent.
            ModelUnhealthy: the tower cannot be used.
        """
        tokenizer = self._usable().tokenizer
        budget.check()
        begin = time.thread_time()
        try:
            return tokenizer.tokenize(text, truncate)
        finally:
            budget.spend(time.thread_time() - begin)

    def encode(self, texts: Sequence[Outcome[Tokens]], budget: Budget) -> list[Outcome[Embedding]]:
        """Encode many texts, one outcome each, in order. What is an error already stays one.

        Texts whose turn comes when `budget` is spent fail with OutOfTime.

        Raises:
            ModelUnhealthy: the tower cannot be used.
        """
        engine = self._usable().engine
        longest = self._model.architecture.context_length
        tokens = {
            i: _of_even_length(text.get().ids, longest)
            for i, text in enumerate(texts)
            if text.error is None
        }
        outcomes: dict[int, Outcome[Embedding]] = {
            i: Outcome(error=text.error) for i, text in enumerate(texts)
        }
        for places in _chunks(tokens):
            ids = np.stack([tokens[place] for place in places])
            inferred = Outcome.of(partial(self._infer, engine, ids, budget))
            for row, place in enumerate(places):
                outcomes[place] = inferred.then(itemgetter(row))
        return list(outcomes.values())

    def _open(self) -> Loaded:
        tokenizer = Tokenizer.load(self._model.directory)
        engine = load_engine(self._config, self._model, self.name)
        golden = self._model.towers[self.name].golden

        def encode() -> Embedding:
            ids = tokenizer.tokenize(golden.input.decode()).ids
            embedding: Embedding = self._infer(engine, ids[None], Budget())[0]
            return embedding

        self.fault = self_check(self.name, engine.precision, golden.embedding, encode)
        return Loaded(tokenizer, engine)

    def _usable(self) -> Loaded:
        try:
            loaded = self.load()
        except Exception as error:
            self.fault = f"the text tower cannot be loaded: {error}"
            log.critical(self.fault)
            raise ModelUnhealthy("texts cannot be encoded; see /health and the log") from error
        if self.fault:
            raise ModelUnhealthy("the text tower failed its self-check; see /health and the log")
        return loaded

    def _infer(self, engine: Engine, ids: TokenIds, budget: Budget) -> Embeddings:
        """int32 [n, t] -> float32 [n, embedding size]."""
        budget.check_clock()
        with self._one_at_a_time, telemetry.timed("engine_ms"):
            return engine.encode(ids)


def _of_even_length(ids: TokenIds, longest: int) -> TokenIds:
    """A text's tokens [t], with one zero more if t is odd and not yet the `longest` possible.

    What follows a text's end has no influence. So that texts of 9 and of 10 tokens share an
    inference, one more token is computed: many captions in one request take a tenth less time.
    """
    if len(ids) % 2 == 0 or len(ids) == longest:
        return ids
    return np.append(ids, np.int32(0))


def _chunks(tokens: Mapping[int, TokenIds]) -> Iterator[list[int]]:
    """Places of texts that go through the engine together: `CHUNK` tokens at most.

    All are of one length. None is padded to the length of another, so that no vector depends on the
    other texts of its request.
    """
    by_length: dict[int, list[int]] = {}
    for place, ids in tokens.items():
        by_length.setdefault(len(ids), []).append(place)
    for length, places in sorted(by_length.items()):
        most = CHUNK // length
        for start in range(0, len(places), most):
            yield places[start : start + most]
