"""The command that prints or makes an S3 Vectors index."""

import shlex
from pathlib import Path

import pytest

from export.index import main
from tests.aws import aws


def test_it_prints_what_it_would_do(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["s3vectors://vectors/clip", "--model", str(model_dir)]) == 0
    bucket, index = capsys.readouterr().out.replace("\\\n", " ").splitlines()
    assert shlex.split(bucket) == [
        "aws",
        "s3vectors",
        "create-vector-bucket",
        "--vector-bucket-name",
        "vectors",
    ]
    assert (
        "--index-name clip --data-type float32 --dimension 512 --distance-metric cosine"
        in " ".join(shlex.split(index))
    )


def test_it_makes_the_index_once(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["s3vectors://vectors/clip", "--model", str(model_dir), "--create"]
    with aws() as cloud:
        assert (main(arguments), main(arguments)) == (0, 0)
        made, found = capsys.readouterr().out.splitlines()
        assert made.startswith("made  arn:")
        assert found.startswith("found  arn:")
        index = cloud.s3vectors.get_index(vectorBucketName="vectors", indexName="clip")["index"]
        assert (index["dimension"], index["distanceMetric"], index["dataType"]) == (
            512,
            "cosine",
            "float32",
        )

        other = {"dataType": "float32", "dimension": 768, "distanceMetric": "cosine"}
        cloud.s3vectors.create_index(vectorBucketName="vectors", indexName="large", **other)
        assert main(["s3vectors://vectors/large", *arguments[1:]]) == 1
        assert "exists with 768 dimensions" in capsys.readouterr().err


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["s3://vectors/clip"])
    assert "not of the form s3vectors://bucket/index" in capsys.readouterr().err
    assert main(["s3vectors://vectors/clip", "--model", str(tmp_path)]) == 1
    assert "no model at" in capsys.readouterr().err
