"""``python -m tests.proof``: 10,000 objects, a tenth of them bad, and what is in place at the end.

Two functions under the real emulator, one writing files and one writing to an index, work through
objects of the stand-in for S3. Their engines deliver twice and out of order, some objects go
through two engines, some are replaced, removed or spoiled while they are being encoded, and the
functions' processes are killed in the middle of batches. What must hold: the vectors equal the
bucket, which is to say exactly one vector, the right one, for each good object or version that was
named, and none for any other; exactly one named failure for each bad one, with its code in the
log; memory flat.
"""

import argparse
import collections
import dataclasses
import json
import logging
import math
import os
import random
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.measure import children
from events import generate
from handler.config import Config
from handler.encoder import Encoder, load_encoder
from handler.events import direct
from handler.images.s3 import Source
from tests import stack
from tests.answers import INVOKE
from tests.aws import CHANGING, UNWRITABLE, aws, take_vectors
from tests.bombs import encoded
from tests.conftest import emulator, with_settings
from tests.measure import growth, resident_megabytes
from tests.templates import batches

OUTPUTS = ("s3://vectors/proof", "s3vectors://proof/clip")
LARGE = 20 * 2**20
PORTION = 500
"""Objects handed to an engine at a time: the stand-in's queues slow down with all they ever held.
"""
MEMORY_GROWTH = 1.05
"""The last tenth's memory over the second tenth's, at most, in the process that lived longest."""
BAD = {
    "missing/": (300, "source_not_found"),
    "denied/": (150, "source_denied"),
    "archived/": (50, "source_denied"),
    "truncated/": (250, "truncated_image"),
    "text/": (150, "not_an_image"),
    "empty/": (50, "missing_field"),
    "large/": (10, "image_too_large"),
    "throttled/": (20, "source_unavailable"),
    "cut/": (10, "source_unavailable"),
    "broken/": (10, "source_unavailable"),
    UNWRITABLE: (20, "output_refused"),
}
"""What an object's key begins with: how many of a thousand bad ones, and the code that each must
get.

Those whose source is unavailable are tried again until the engine gives up, with all that shares
their batch.
"""
TEXT, GONE = b"no image", None
CHANGES: Mapping[str, tuple[int | bytes | None, ...]] = {
    f"{CHANGING}overwritten/": (0, 1),
    f"{CHANGING}removed/": (0, GONE),
    f"{CHANGING}spoiled/": (0, TEXT),
    f"{CHANGING}mended/": (TEXT, 0),
    f"{CHANGING}remade/": (0, GONE, 1),
}
"""What an object is, one after the other, while it is being encoded: a number is one of the
pictures.
"""
GOOD = {"photos/": 960, "throttled-once/": 30, "slow/": 1, "2024/röd sko+50 %/": 9}

Event = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One object, or version, that an engine is told of, and what must come of it."""

    source: Source
    image: int | None
    """Which picture it is at the end; None: none."""
    code: str = ""
    """What must be in the log if it is a bad one."""
    later: tuple[bytes | None, ...] = ()
    """What the object becomes, one after the other, while its engine works; None: it is removed."""

    @property
    def most_failures(self) -> float:
        """How often it may be named as failed. Each change's message is set aside on its own."""
        if TEXT in self.later or (self.later and "mended/" in self.source.key):
            return math.inf
        return 1 if self.code else 0


def pictures() -> list[bytes]:
    """Twenty-four small images of several formats, no two alike."""
    ramp, disc = Image.linear_gradient("L"), Image.radial_gradient("L")
    made = []
    for n in range(24):
        mixed = Image.merge("RGB", (ramp.rotate(15 * n), disc, ramp.rotate(-40 * n)))
        made.append(
            encoded(mixed.resize((320, 240 + 4 * n)), ("JPEG", "PNG", "WEBP", "BMP")[n % 4])
        )
    return made


def fill(s3: Any, images: Sequence[bytes], count: int, rng: random.Random) -> list[Item]:
    """Put `count` objects, a tenth of them bad, into a versioned bucket; what engines are to be
    told of.

    One good object in twenty has two versions, each of which counts.
    """
    broken = {"truncated/": images[0][:-2000], "text/": TEXT, "empty/": b"", "large/": bytes(LARGE)}
    kinds = rng.choices(list(BAD), [share for share, _ in BAD.values()], k=count // 10)
    kinds += rng.choices(list(CHANGES), k=count // 20)
    # One of each, however few there are.
    kinds += [kind for kind in (*BAD, *CHANGES, *GOOD) if kind not in kinds]
    kinds = (kinds + rng.choices(list(GOOD), list(GOOD.values()), k=count))[:count]
    picks = [rng.randrange(len(images)) for _ in kinds]
    twice = [kind in GOOD and rng.random() < 0.05 for kind in kinds]

    def put(number: int) -> list[Item]:
        kind, key = kinds[number], f"{kinds[number]}{number:06}"
        if kind in CHANGES:
            states = [_state(images, picks[number], state) for state in CHANGES[kind]]
            s3.put_object(Bucket=generate.BUCKET, Key=key, Body=states[0])
            last = states[-1]
            image = images.index(last) if last in images else None
            code = "not_an_image" if last == TEXT else ""
            return [Item(Source(generate.BUCKET, key), image, code, tuple(states[1:]))]
        versions = []
        for pick in (picks[number], picks[number] - 1)[: 1 + twice[number]]:
            body = broken.get(kind, images[pick])
            if kind != "missing/":
                versions.append(
                    s3.put_object(Bucket=generate.BUCKET, Key=key, Body=body)["VersionId"]
                )
        if kind in BAD:
            return [Item(Source(generate.BUCKET, key), None, BAD[kind][1])]
        if not twice[number]:
            return [Item(Source(generate.BUCKET, key), picks[number])]
        named = zip(versions, (picks[number], (picks[number] - 1) % len(images)), strict=True)
        return [Item(Source(generate.BUCKET, key, version), pick) for version, pick in named]

    with ThreadPoolExecutor(4) as pool:
        made = list(tqdm(pool.map(put, range(count)), "objects", count, unit="object"))
    return [item for items in made for item in items]


def _state(images: Sequence[bytes], pick: int, state: int | bytes | None) -> bytes | None:
    return images[(pick + state) % len(images)] if isinstance(state, int) else state


# --- a function that dies -------------------------------------------------------------------------


class Function:
    """The worker under the emulator, whose process is killed now and then while it works."""

    def __init__(
        self,
        client: httpx.Client,
        log: Path,
        emulator_pid: int,
        rng: random.Random,
        twin: Callable[[Event], Any],
    ) -> None:
        self.client = client
        self.log = log
        """What it writes into its log lies here."""
        self.twin = twin
        """Another instance of the function, in this process, to which nothing happens."""
        self.emulator_pid = emulator_pid
        self.rng = rng
        self.danger = 0.0
        """How likely the process dies in the middle of an invocation, though never of two in a row.
        """
        self.lives = 0
        """How often it may still die."""
        self.kills = 0
        self.memory: dict[int, list[float]] = collections.defaultdict(list)
        """Megabytes resident after each invocation, by process."""
        self._died = False

    def invoke(self, event: Event, images: int, may_die: bool = True) -> Any:
        """What the function answers; `images` is how many it names, for the choice of a moment to
        die.
        """
        killer = None
        if may_die and self.lives and not self._died and self.rng.random() < self.danger:
            self.lives -= 1
            killer = threading.Timer(self.rng.uniform(0, 0.05 * images), self._kill)
            killer.start()
        answer = self.client.post(INVOKE, json=event).json()
        if killer:
            killer.cancel()
            killer.join()
        self._died = bool(killer)
        with suppress(OSError):  # no process is left
            for pid in children(self.emulator_pid):
                self.memory[pid].append(resident_megabytes(pid))
        return answer

    def _kill(self) -> None:
        for pid in children(self.emulator_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1

    @property
    def memory_growth(self) -> float:
        return growth(max(self.memory.values(), key=len))


def failed(answer: Any) -> bool:
    """Whether an invocation ended in an error, its process's death being one."""
    return isinstance(answer, dict) and "errorType" in answer


# --- AWS's engines: each returns the failures it would show a person, by the object's name --------

Changes = Mapping[Source, collections.deque[bytes | None]]
Work = Callable[[Function, Sequence[Item], random.Random, SimpleNamespace], list[str]]


def s3_batch(
    function: Function, items: Sequence[Item], rng: random.Random, cloud: Any
) -> list[str]:
    """One task an invocation, tried three times more; in the end a report of each task."""
    todo = [(item, 0) for item in items]
    rng.shuffle(todo)
    report = []
    while todo:
        item, tries = todo.pop()
        event = generate.s3_batch(rng.choice(["1.0", "2.0"]), item.source.key)
        event["tasks"][0]["s3VersionId"] = item.source.version_id or None
        answer = function.invoke(event, 1)
        if rng.random() < 0.02:  # its answer is lost on the way
            answer = function.invoke(event, 1)
        code = "TemporaryFailure" if failed(answer) else answer["results"][0]["resultCode"]
        if code == "TemporaryFailure" and tries < 3:
            todo.insert(rng.randrange(len(todo) + 1), (item, tries + 1))
        elif code != "Succeeded":
            report.append(str(item.source))
    return report


def sqs(function: Function, items: Sequence[Item], rng: random.Random, cloud: Any) -> list[str]:
    """Lambda's poller of a queue with the template's settings.

    In the end the failures are those of its dead-letter queue, and those that the function's log
    names for good.

    One message in ten is sent twice, all are out of order, and a few are none of ours. Objects that
    change do so while a message that names them is worked on, and S3 sends the next message. Half
    of those go to another instance of the function at once, which may be done before the first one.
    """
    receives = batches().properties("Queue")["RedrivePolicy"]["maxReceiveCount"]
    size = batches().properties("QueueMapping")["BatchSize"]
    queue, dead = _queues(cloud.sqs, receives)
    before = function.log.stat().st_size
    sent = {_message(item, rng): item for item in items}
    changes = {item.source: collections.deque(item.later) for item in items if item.later}
    bodies = list(sent)
    bodies += [
        *rng.sample(bodies, len(bodies) // 10),
        json.dumps(generate.s3_test_event()),
        "not JSON",
    ]
    rng.shuffle(bodies)
    while True:
        for _ in range(size // 10 + 1):  # they come in while others are worked on
            some, bodies = bodies[:10], bodies[10:]
            entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(some)]
            if entries:
                cloud.sqs.send_message_batch(QueueUrl=queue, Entries=entries)
        if not (messages := _receive(cloud.sqs, queue, size)):
            break
        event = generate.sqs(*(message["Body"] for message in messages))
        for record, message in zip(event["Records"], messages, strict=True):
            record["messageId"] = message["MessageId"]
        told = {sent[m["Body"]] for m in messages if m["Body"] in sent}
        changing = [item for item in told if changes.get(item.source)]
        with _meanwhile(
            function, cloud.s3, changing, changes, rng.uniform(0, 0.03 * len(messages))
        ) as news:
            answer = function.invoke(event, len(messages))
        sent |= news
        for body in news:
            bodies.insert(rng.randrange(len(bodies) + 1), body)
        again = {m["MessageId"] for m in messages}
        if not failed(answer):
            again = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in messages:
            receipt = {"QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"]}
            if message["MessageId"] in again:
                cloud.sqs.change_message_visibility(**receipt, VisibilityTimeout=0)
            else:
                cloud.sqs.delete_message(**receipt)
    set_aside = _set_aside(cloud.sqs, dead) - {"not JSON"}
    lines = _failures(function.log.read_bytes()[before:].decode())
    named = {line["source"] for line in lines if not line["retryable"]}
    asked = {str(item.source) for item in items}
    return [*(named & asked | {str(sent[body].source) for body in set_aside})]


def _queues(client: Any, receives: int) -> tuple[str, str]:
    name = f"queue-{uuid.uuid4()}"
    queue, dead = (
        client.create_queue(QueueName=f"{name}{end}")["QueueUrl"] for end in ("", "-dead")
    )
    arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"][
        "QueueArn"
    ]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": receives})
    client.set_queue_attributes(QueueUrl=queue, Attributes={"RedrivePolicy": policy})
    return queue, dead


def _set_aside(client: Any, dead: str) -> set[str]:
    bodies = set()  # a message sent twice is set aside twice
    while messages := _receive(client, dead, 10):
        bodies |= {message["Body"] for message in messages}
        for message in messages:
            client.delete_message(QueueUrl=dead, ReceiptHandle=message["ReceiptHandle"])
    assert "not JSON" in bodies
    return bodies


@contextmanager
def _meanwhile(
    function: Function, s3: Any, items: Sequence[Item], changes: Changes, after: float
) -> Iterator[dict[str, Item]]:
    """Give each of `items` its next state, `after` so many seconds, while the block runs.

    Afterwards the dict holds the messages of these changes that are still to be delivered.
    """
    rng, news = random.Random(after), {}

    def change() -> None:
        for item in items:
            where = {"Bucket": item.source.bucket, "Key": item.source.key}
            body = changes[item.source].popleft()
            if body is GONE:
                s3.delete_object(**where)
            else:
                s3.put_object(**where, Body=body)
            message = _message(item, rng)
            overtakes = (
                not changes[item.source] and rng.random() < 0.5
            )  # only a message brings on the next
            if not overtakes or function.twin(generate.sqs(message))["batchItemFailures"]:
                news[message] = item

    timer = threading.Timer(after, change)
    timer.start()
    yield news
    timer.join()


def _message(item: Item, rng: random.Random) -> str:
    """What a queue is told of `item`, unlike any other message.

    A version, and an object that is not there, can be asked for by name only; S3 tells of what
    changes.
    """
    key = item.source.key
    notification, bridged, ours = (
        generate.s3_notification(key),
        generate.s3_eventbridge(key),
        generate.in_s3(key),
    )
    unique = f"{rng.randrange(16**16):016X}"
    notification["Records"][0]["s3"]["object"]["sequencer"] = unique
    bridged["detail"]["object"]["sequencer"] = unique
    notifications = [notification, generate.sns(notification), bridged]
    if item.source.version_id:
        ours["s3"]["version_id"] = item.source.version_id
    by_name = bool(item.source.version_id) or item.code == "source_not_found"
    return json.dumps(
        ours if by_name else rng.choice(notifications if item.later else [*notifications, ours])
    )


def _receive(client: Any, queue: str, most: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < most:
        some = client.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=min(10, most - len(found))
        )
        if not (messages := some.get("Messages")):
            break
        found += messages
    return found


def distributed_map(
    function: Function, items: Sequence[Item], rng: random.Random, cloud: Any
) -> list[str]:
    """Batches as the template's state machine makes and retries them, and the run's results."""
    encode = batches().definition()["States"]["Encode"]
    size = encode["ItemBatcher"]["MaxItemsPerBatch"]
    faults = encode["ItemProcessor"]["States"]["EncodeBatch"]["Retry"][0]
    attempts = faults["MaxAttempts"] + 1
    todo = list(items)
    rng.shuffle(todo)
    names = []
    for start in range(0, len(todo), size):
        batch = todo[start : start + size]
        wanted = [
            {
                "bucket": i.source.bucket,
                "key": i.source.key,
                "version_id": i.source.version_id or None,
            }
            for i in batch
        ]
        event = generate.map_batch(*({"s3": {k: v for k, v in s3.items() if v}} for s3 in wanted))
        twice = rng.random() < 0.1  # an execution of the Express kind may run more than once
        for attempt in range(1, attempts + 1):
            answer = function.invoke(event, len(batch), may_die=attempt < attempts)
            if not failed(answer) and not twice:
                break
            twice = False
        if failed(answer):  # it names all of them
            names += [str(i.source) for i in batch for _ in range(_mentions(answer, i.source))]
        else:
            names += [error["source"] for error in answer["errors"]]
    return names


def _mentions(answer: Any, source: Source) -> int:
    return str(answer["errorMessage"]).count(f" {source}: ")


ENGINES: Mapping[str, tuple[Work, float]] = {
    "S3 Batch Operations": (s3_batch, 0.02),
    "SQS": (sqs, 0.2),
    "Distributed Map": (distributed_map, 0.2),
}
"""And how likely a process dies in one invocation of each, until it has done so eight times."""


# --- what is in place at the end ------------------------------------------------------------------


@dataclass
class Proof:
    """What the functions were given, and what they left."""

    items: list[Item]
    named: list[str]
    """Every failure that an engine would show a person."""
    vectors: list[tuple[str, np.ndarray[Any, Any]]]
    """Every vector in place, with its object's name."""
    codes: dict[str, set[str]]
    """The codes that the log has for an object."""
    expected: np.ndarray[Any, Any]
    """The pictures' vectors [n, 512], by an encoder that nothing happens to."""
    kills: int
    memory: float
    memory_growth: float
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Compare; `wrong` says what is not as it must be."""
        placed = collections.Counter(name for name, _ in self.vectors)
        named = collections.Counter(self.named)
        vectors = dict(self.vectors)
        for item in self.items:
            name = str(item.source)
            named_right = bool(item.code) <= named[name] <= item.most_failures
            if placed[name] != (item.image is not None) or not named_right:
                self.wrong.append(
                    f"{name}: {placed[name]} vectors, named as failed {named[name]} times"
                )
            elif item.code and item.code not in self.codes.get(name, ()):
                self.wrong.append(f"{name}: {item.code} is not in the log")
            elif (
                item.image is not None
                and np.abs(vectors[name] - self.expected[item.image]).max() > 1e-5
            ):
                self.wrong.append(f"{name}: not its vector")
        asked = {str(item.source) for item in self.items}
        self.wrong += [
            f"{name}: nobody asked for it" for name in (placed.keys() | named.keys()) - asked
        ]
        if self.memory_growth > MEMORY_GROWTH:
            self.wrong.append(f"memory grew by a factor of {self.memory_growth:.3f}")

    def __str__(self) -> str:
        bad = sum(item.image is None for item in self.items)
        objects = f"{len(self.items):,} object versions, {bad:,} of them bad"
        memory = f"memory {self.memory:.0f} MB at most"
        return "\n".join(
            [
                *self.wrong[:20],
                f"{objects}; {self.kills} processes killed",
                f"{len(self.vectors):,} vectors in place, {len(self.named):,} failures named",
                f"{len(self.wrong)} wrong",
                f"{memory}; last tenth over second: {self.memory_growth:.3f}",
            ]
        )


def run(model_dir: Path, folder: Path, objects: int, seed: int) -> Proof:
    """Fill a bucket, let every engine work through its share of it for each output, and look."""
    rng, images = random.Random(seed), pictures()
    plain = load_encoder(Config(model_dir=model_dir))
    with _cloud() as cloud:
        items = fill(cloud.s3, images, objects, rng)
        rng.shuffle(items)
        routes = {item.source.key: _route(item, rng) for item in items}
        bar = tqdm(total=len(OUTPUTS) * len(ENGINES), desc="engines", unit="engine")

        def work(output: str) -> tuple[Function, list[str]]:
            mine, names = random.Random(f"{seed}/{output}"), []
            log = folder / output.partition(":")[0]
            with _function(plain, log, output, mine) as function:
                for engine, (engine_work, function.danger) in ENGINES.items():
                    function.lives = 8
                    todo = [item for item in items if (engine, output) in routes[item.source.key]]
                    for start in range(0, len(todo), PORTION):
                        names += engine_work(function, todo[start : start + PORTION], mine, cloud)
                    bar.update()
            return function, names

        with ThreadPoolExecutor(len(OUTPUTS)) as pool:
            done = list(pool.map(work, OUTPUTS))
        bar.close()
        items = [_as_it_is(cloud.s3, item, images) for item in items]
        vectors = _vectors(cloud)
    return Proof(
        items=items,
        named=[name for _, names in done for name in names],
        vectors=vectors,
        codes=_codes(path for path in folder.iterdir()),
        expected=np.stack([plain.encode(image) for image in images]),
        kills=sum(function.kills for function, _ in done),
        memory=max(max(m) for function, _ in done for m in function.memory.values()),
        memory_growth=max(function.memory_growth for function, _ in done),
    )


def _route(item: Item, rng: random.Random) -> set[tuple[str, str]]:
    """The engines that are told of an object and its versions, and the one output that they write
    to.

    What changes is told of by the queue, as S3's notifications would; one in three has been in a
    job's manifest before. One good object in ten goes through two engines.
    """
    output = rng.choice(OUTPUTS)
    engines = [rng.choice(list(ENGINES))]
    if item.later:
        engines = ["SQS", "S3 Batch Operations"] if rng.random() < 1 / 3 else ["SQS"]
    elif not item.code and rng.random() < 0.1:
        engines = rng.sample(list(ENGINES), 2)
    elif item.source.key.startswith(UNWRITABLE):  # a run's file is denied or not, whatever is in it
        engines = [rng.choice(["SQS", "S3 Batch Operations"])]
    return {(engine, output) for engine in engines}


def _as_it_is(s3: Any, item: Item, images: Sequence[bytes]) -> Item:
    """`item` with the picture that lies in the bucket at the end, if it is one that changes."""
    if not item.later:
        return item
    try:
        body = s3.get_object(Bucket=item.source.bucket, Key=item.source.key)["Body"].read()
    except s3.exceptions.NoSuchKey:
        body = GONE
    assert body == item.later[-1]
    return dataclasses.replace(item, image=images.index(body) if body in images else None)


@contextmanager
def _cloud() -> Iterator[SimpleNamespace]:
    with aws() as cloud:
        for bucket in (generate.BUCKET, "vectors"):
            cloud.s3.create_bucket(Bucket=bucket)
        versioning = {"Status": "Enabled"}
        cloud.s3.put_bucket_versioning(Bucket=generate.BUCKET, VersioningConfiguration=versioning)
        stack.create_index("proof", "clip")
        yield cloud


@contextmanager
def _function(plain: Encoder, log: Path, output: str, rng: random.Random) -> Iterator[Function]:
    twin = with_settings(
        plain, s3_buckets=(generate.BUCKET,), output=output, max_image_bytes=LARGE - 1
    )
    settings = {
        "CLIP_S3_BUCKETS": generate.BUCKET,
        "CLIP_OUTPUT": output,
        "CLIP_MAX_IMAGE_BYTES": str(LARGE - 1),
        "CLIP_THREADS": "1",
    }
    with emulator(plain.config.model_dir, log, "handler.worker.handler", **settings) as (
        client,
        pid,
    ):
        client.timeout = httpx.Timeout(600)
        # It loads the model first: the emulator answers nothing at all for one that dies meanwhile.
        client.post(INVOKE, json={"action": "health"})
        yield Function(client, log, pid, rng, lambda event: direct.invoke(event, None, twin))


def _vectors(cloud: SimpleNamespace) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """All that lies in the bucket of files, as docs/batch.md reads it, and in the index."""
    found = newest(take_vectors(cloud.s3))
    listed = cloud.s3vectors.list_vectors(
        vectorBucketName="proof", indexName="clip", returnData=True
    )
    assert "nextToken" not in listed
    return found + [
        (vector["key"], np.array(vector["data"]["float32"])) for vector in listed["vectors"]
    ]


def newest(files: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """The vectors of `files`, by their paths: of each name what was read last, and all that one
    folder has.

    A name must not stand twice in one folder: the folder of objects, or that of a run.
    """
    entries = collections.defaultdict(list)
    for path, file in files.items():
        folder = path.rpartition("/")[0]
        for name, time, vector in zip(
            file["name"], file["read_at"], file["embedding"], strict=True
        ):
            entries[str(name)].append((float(time), folder, vector))
        for name, time in zip(file["removed"], file["removed_at"], strict=True):
            entries[str(name)].append((float(time), folder, None))
    found = []
    for name, said in entries.items():
        _, last, _ = max(said, key=lambda entry: entry[0])
        found += [
            (name, vector) for _, folder, vector in said if folder == last and vector is not None
        ]
    return found


def _codes(logs: Iterator[Path]) -> dict[str, set[str]]:
    codes: dict[str, set[str]] = collections.defaultdict(set)
    for log in logs:
        for line in _failures(log.read_text()):
            codes[line["source"]].add(line["code"])
    return codes


def _failures(log: str) -> list[dict[str, Any]]:
    """The lines of a function's log that name what got no vector."""
    named = [line for line in log.splitlines() if '"no vector"' in line]
    return [json.loads(line[line.index("{") :]) for line in named]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    logging.getLogger("clip").setLevel(
        "ERROR"
    )  # what the other instance of the function finds wrong
    with tempfile.TemporaryDirectory() as folder:
        proof = run(Path(os.environ["CLIP_MODEL_DIR"]), Path(folder), options.objects, options.seed)
    print(proof)
    return 1 if proof.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
