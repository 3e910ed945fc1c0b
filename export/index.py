"""``python -m export.index s3vectors://bucket/index``: print how to make an index, or make it."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from handler.model import Model, ModelError

DATA_TYPE, METRIC = "float32", "cosine"
NOT_FILTERABLE = ["etag"]
"""Metadata that no search filters by. What can be filtered by is limited to 2 KB a vector."""


def main(arguments: list[str] | None = None) -> int:
    """Print the AWS CLI's commands, or do the same with ``--create``: 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="python -m export.index", description=__doc__)
    parser.add_argument("output", help="s3vectors://bucket/index, as in CLIP_OUTPUT")
    parser.add_argument(
        "--model", type=Path, default=Path("model"), help="folder of the exported model"
    )
    parser.add_argument(
        "--create", action="store_true", help="make bucket and index, unless they exist"
    )
    options = parser.parse_args(arguments)
    named = re.fullmatch(r"s3vectors://([a-z0-9.-]{3,63})/([a-z0-9.-]{3,63})", options.output)
    if not named:
        parser.error(f"{options.output!r} is not of the form s3vectors://bucket/index")
    try:
        dimension = Model.load(options.model).embedding_size
        bucket, index = named.groups()
        act = create if options.create else commands
        print(act(bucket, index, dimension))
    except (ModelError, ClientError, BotoCoreError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def commands(bucket: str, index: str, dimension: int) -> str:
    """What to type instead of ``--create``."""
    return (
        f"aws s3vectors create-vector-bucket --vector-bucket-name {bucket}\n"
        f"aws s3vectors create-index --vector-bucket-name {bucket} --index-name {index} \\\n"
        f"    --data-type {DATA_TYPE} --dimension {dimension} --distance-metric {METRIC} \\\n"
        f"    --metadata-configuration nonFilterableMetadataKeys={','.join(NOT_FILTERABLE)}"
    )


def create(bucket: str, index: str, dimension: int) -> str:
    """Make the bucket and the index, unless they exist; one line that says which it was.

    Raises:
        ValueError: an index of that name exists, but of another dimension or metric.
        ClientError, BotoCoreError: AWS refused, or was not reached.
    """
    client = boto3.client("s3vectors")
    names = {"vectorBucketName": bucket, "indexName": index}
    if not _find(client.get_vector_bucket, vectorBucketName=bucket):
        client.create_vector_bucket(vectorBucketName=bucket)
    found = _find(client.get_index, **names)
    if not found:
        client.create_index(
            **names,
            dataType=DATA_TYPE,
            dimension=dimension,
            distanceMetric=METRIC,
            metadataConfiguration={"nonFilterableMetadataKeys": NOT_FILTERABLE},
        )
    card = (found or client.get_index(**names))["index"]
    if (card["dimension"], card["distanceMetric"]) != (dimension, METRIC):
        has = f"{card['dimension']} dimensions and {card['distanceMetric']} distance"
        raise ValueError(
            f"the index {index} exists with {has}; "
            f"these vectors need {dimension} and {METRIC}: choose another name"
        )
    return f"{'found' if found else 'made'}  {card['indexArn']}  ({dimension} dimensions, {METRIC})"


def _find(get: Any, **names: str) -> Any:
    try:
        return get(**names)
    except ClientError as error:
        if error.response["Error"]["Code"] != "NotFoundException":
            raise
        return None


if __name__ == "__main__":
    sys.exit(main())
