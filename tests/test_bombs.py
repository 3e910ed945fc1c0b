"""Files that cost a service its memory or its time: refused, or served, at a bounded cost."""

import pytest

from tests.bombs import REFUSED, SERVED
from tests.measure import measure


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_at_once(name: str) -> None:
    cost = measure(REFUSED[name]())
    assert cost.status in (413, 422), cost
    assert cost.seconds < 1, cost
    assert cost.megabytes < 300, cost


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("profile", ["openai", "corrected"])
def test_the_largest_image_of_a_format_stays_within_bounds(name: str, profile: str) -> None:
    """A Lambda environment of 1,769 MB has some 1,300 MB beside the model."""
    cost = measure(SERVED[name](), profile)
    assert cost.status in (200, 413, 422), cost
    assert cost.seconds < 4, cost
    assert cost.megabytes < 1000, cost
