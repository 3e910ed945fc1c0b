"""The text tower: which texts go through the engine together, and that it changes no vector."""

import numpy as np

from handler.budget import Budget
from handler.config import Config
from handler.engines import Embeddings, Engine, Pixels, TokenIds, Turns
from handler.model import Model
from handler.outcome import Outcome
from handler.text.tokenizer import Tokens
from handler.towers.text import CHUNK, TextTower


class Recorded:
    """A real engine, and the shape of all that it was given."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.shapes: list[tuple[int, ...]] = []

    def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
        self.shapes.append(inputs.shape)
        return self.engine.encode(inputs)


def text_tower(model: Model) -> tuple[TextTower, Recorded]:
    """A tower, and its engine, which has seen nothing yet."""
    tower = TextTower(model, Config(), Turns())
    loaded = tower.load()
    recorded = Recorded(loaded.engine)
    tower._loaded = loaded._replace(engine=recorded)
    return tower, recorded


def texts_of(lengths: list[int]) -> list[Tokens]:
    """Texts of so many tokens, each with other words."""
    words = np.random.default_rng(0)
    return [
        Tokens(np.array([49406, *words.integers(512, 49406, n - 2), 49407], np.int32), False)
        for n in lengths
    ]


def test_texts_of_nearly_one_length_share_an_inference(model: Model) -> None:
    tower, engine = text_tower(model)
    texts = texts_of([10, 77, 9, 76, 2, 10])
    outcomes = tower.encode([Outcome(text) for text in texts], Budget())
    assert sorted(engine.shapes) == [(1, 2), (1, 76), (1, 77), (3, 10)]  # 78 would be too many
    for text, outcome in zip(texts, outcomes, strict=True):
        alone = engine.encode(text.ids[None])[0]
        np.testing.assert_allclose(outcome.get(), alone, atol=1e-6)


def test_no_inference_is_of_more_tokens_than_a_chunk(model: Model) -> None:
    tower, engine = text_tower(model)
    texts = texts_of([16] * 40)
    tower.encode([Outcome(text) for text in texts], Budget())
    assert engine.shapes == [(32, 16), (8, 16)]
    assert CHUNK == 32 * 16
