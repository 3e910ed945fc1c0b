"""Requests made by Schemathesis from the service's own OpenAPI, sound and unsound ones."""

import subprocess
import sys
from pathlib import Path

import httpx

# What a schema cannot say: that the bytes must be an image.
CONTENT = "positive_data_acceptance,negative_data_rejection"


def test_every_answer_is_as_documented(client: httpx.Client, tmp_path: Path) -> None:
    """No 5xx; status, media type, headers and body as the schema says."""
    command = [
        *(
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{client.base_url}/openapi.json",
        ),
        *("--checks", "all", "--exclude-checks", CONTENT, "--continue-on-failure"),
        *("--max-examples", "50", "--no-color"),
    ]
    run = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout
    assert "Fuzzing" in run.stdout
    assert " passed" in run.stdout
