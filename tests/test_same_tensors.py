"""The program that says whether two checkpoints hold the same numbers."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from proofs.same_tensors import main
from tests import checkpoints


def test_openais_two_files_are_equal_and_a_changed_number_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.write_official(tmp_path)
    archive, folder = str(tmp_path / "ViT-B-32.pt"), tmp_path / "hub"
    assert main([archive, str(folder)]) == 0
    assert capsys.readouterr().out.startswith("equal: ")
    weights = folder / "pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    state["text_model.encoder.layers.1.self_attn.k_proj.weight"][3, 4] += 1e-6
    torch.save(state, weights)
    assert main([archive, str(folder)]) == 1
    line, verdict = capsys.readouterr().out.splitlines()
    assert line.startswith("transformer.resblocks.1.attn.in_proj_weight: differs, up to ")
    assert verdict == "not equal"


def test_what_cannot_be_read_is_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.pt"), str(tmp_path / "none.pt")]) == 2
    assert "no such file" in capsys.readouterr().err
