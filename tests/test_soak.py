"""A short soak; ``make soak`` is the long one, which judges latency too."""

import random
from pathlib import Path

from tests import soak
from tests.conftest import emulator


def test_hundreds_of_requests_leave_nothing_behind(model_dir: Path, tmp_path: Path) -> None:
    with emulator(model_dir, tmp_path / "log") as (client, pid):
        result = soak.run(client, pid, 200, seed=(seed := random.randrange(2**32)))
    print(f"seed {seed}\n{result}")
    assert not result.wrong
    assert result.memory_growth <= soak.MEMORY_GROWTH
