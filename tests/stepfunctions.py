"""What moto's Step Functions and Lambda lack to run the template's Distributed Map.

`install` adds it to the moto of this process. Everything else is moto's own: reading the
definition and its payload templates, listing the bucket, Choice, Wait, Fail, errors' names, Retry
with its waiting, parallel children, DescribeMapRun and its counts. Emulation of ours, after AWS's
documents, is:

- ItemBatcher: what is listed and selected is cut into batches, with its BatchInput in each.
- The context's Execution.StartTime is a text, as AWS's is, which moto's formatting wants too.
- EXPRESS children run as STANDARD ones do: their five minutes are not kept.
- A whole number as ToleratedFailurePercentage, which moto's grammar refuses, and that a Map fails
  that has more failures than it tolerates.
- The letter that the fields of an ``aws-sdk`` task's parameters and answer begin with, as Step
  Functions has it; the call itself is moto's.
- The files SUCCEEDED_0.json and FAILED_0.json of the ResultWriter, and their names in its manifest.
- The limit of 256 KiB on a child's input and output.
- ``lambda:invoke``: the function runs where its description says, which is JSON with the ``url``
  of an emulator's; one invocation at a time, as one instance would. The function's own errors are
  its own, but the batch that begins with the key ``waking`` is refused for its first
  `WAKING_SECONDS`, as if the function had been idle for weeks, and the one that begins with the
  key ``lost`` reaches it without its items, so that it raises each time.
- Lambda's poller of queues does not run: moto's knows no partial failures.
- DescribeMapRun says RUNNING when it is asked first, for AWS's may lag behind.

A bucket's second page (from 1,001 objects on) is not listed.
"""

import json
import threading
import time
import urllib.request
from typing import Any

import botocore.session
from moto.awslambda.exceptions import LambdaClientError
from moto.awslambda.models import LambdaFunction
from moto.core.utils import iso_8601_datetime_with_milliseconds
from moto.sqs.models import Queue
from moto.stepfunctions.parser.asl.component.state.exec.state_map.iteration import (
    distributed_iteration_component as iteration,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_map.iteration.itemprocessor import (
    distributed_item_processor_worker as worker,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_map.iteration.itemprocessor import (
    map_run_record,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_map.result_writer.resource_eval import (  # noqa: E501  # moto's own name
    resource_eval_s3 as writer,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_aws_sdk import (  # noqa: E501
    StateTaskServiceAwsSdk,
)
from moto.stepfunctions.parser.asl.eval.program_state import ProgramError
from moto.stepfunctions.parser.asl.eval.states import ItemData, MapData
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser

WAKING_SECONDS = 3
LARGEST = 256 * 1024
"""Bytes of an execution's input or output."""

_batch_sizes: dict[str, int] = {}
"""By the Map's name."""


def install() -> None:
    """Patch moto, once in a process."""
    component, child = (
        iteration.DistributedIterationComponent,
        worker.DistributedItemProcessorWorker,
    )
    parse = AmazonStateLanguageParser.parse
    patches: list[tuple[type, str, Any]] = [
        (AmazonStateLanguageParser, "parse", staticmethod(_parsing(parse))),
        (component, "_map_run", _running_batches(component._map_run)),
        (child, "_eval_job", _keeping_results(child._eval_job)),
        (StateTaskServiceAwsSdk, "_normalise_parameters", _to_boto),
        (StateTaskServiceAwsSdk, "_normalise_response", _from_boto),
        (map_run_record.MapRunRecord, "describe", _lagging(map_run_record.MapRunRecord.describe)),
        (writer.ResourceEvalS3, "_handle_put_object", staticmethod(_write_results)),
        (LambdaFunction, "invoke", _Invoke()),
        (
            Queue,
            "lambda_event_source_mappings",
            property(lambda queue: {}, lambda queue, value: None),
        ),
    ]
    for owner, name, patch in patches:
        setattr(owner, name, patch)


# --- Step Functions -------------------------------------------------------------------------------


def _parsing(parse: Any) -> Any:
    """Read a definition in the words that moto's grammar knows."""

    def parse_known(definition: str) -> Any:
        machine = json.loads(definition)
        for name, state in machine["States"].items():
            if "ItemBatcher" in state:
                batcher = state.pop("ItemBatcher")
                _batch_sizes[name] = batcher["MaxItemsPerBatch"]
                # moto evaluates both templates for each item; `_batches` puts them together.
                state["ItemSelector"] = {
                    "Item": state["ItemSelector"],
                    "Batch": batcher["BatchInput"],
                }
                state["ItemProcessor"]["ProcessorConfig"]["ExecutionType"] = "STANDARD"
                state["ToleratedFailurePercentage"] = float(state["ToleratedFailurePercentage"])
        return parse(json.dumps(machine))

    return parse_known


def _running_batches(map_run: Any) -> Any:
    def run(self: Any, env: Any, eval_input: Any) -> None:
        record = eval_input.map_run_record
        record.results = []
        env.stack.append(_batches(env, env.stack.pop(), eval_input))
        eval_input.item_selector = None
        map_run(self, env, eval_input)
        counts = record.execution_counter
        if 100 * counts.failed.get() > eval_input.tolerated_failure_percentage * counts.total.get():
            raise RuntimeError("States.ExceedToleratedFailureThreshold")

    return run


def _batches(env: Any, items: list[Any], settings: Any) -> list[Any]:
    size = _batch_sizes[settings.state_name]
    execution = env.states.context_object.context_object_data["Execution"]
    if not isinstance(execution["StartTime"], str):
        execution["StartTime"] = iso_8601_datetime_with_milliseconds(execution["StartTime"])
    selected = [_select(env, index, item, settings) for index, item in enumerate(items)]
    chunks = [selected[start : start + size] for start in range(0, len(selected), size)]
    return [
        {"Items": [chosen["Item"] for chosen in chunk], "BatchInput": chunk[0]["Batch"]}
        for chunk in chunks
    ]


def _select(env: Any, index: int, item: Any, settings: Any) -> Any:
    frame = env.open_inner_frame()
    frame.states.context_object.context_object_data["Map"] = MapData(
        Item=ItemData(Index=index, Value=item)
    )
    frame.states.reset(env.states.get_input())
    frame.stack.append(env.states.get_input())
    settings.item_selector.eval(frame)
    chosen = frame.stack[-1]
    env.delete_frame(frame)
    return chosen


def _keeping_results(eval_job: Any) -> Any:
    def evaluate(self: Any, env: Any, job: Any) -> None:
        result: dict[str, Any] = {"Input": _limited(job.job_input)}
        eval_job(self, env, job)
        state = env.program_state()
        if isinstance(state, ProgramError):
            error = state.error or {}
            result |= {"Status": "FAILED", "Error": error.get("error"), "Cause": error.get("cause")}
        else:
            result |= {"Status": "SUCCEEDED", "Output": _limited(job.job_output)}
        self._map_run_record.results.append(result)

    return evaluate


def _limited(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if len(text.encode()) > LARGEST:
        raise RuntimeError("States.DataLimitExceeded")
    return text


def _to_boto(self: Any, parameters: dict[str, Any], *_: Any, **__: Any) -> None:
    self._to_boto_request(parameters, _operation(self).input_shape)


def _from_boto(self: Any, response: dict[str, Any], *_: Any, **__: Any) -> None:
    self._from_boto_response(response, _operation(self).output_shape)


def _operation(task: Any) -> Any:
    model = botocore.session.get_session().get_service_model(task._get_boto_service_name())
    action = task.resource.api_action
    return model.operation_model(action[0].upper() + action[1:])


def _lagging(describe: Any) -> Any:
    def describe_late(self: Any) -> Any:
        told: dict[str, Any] = describe(self)
        if not vars(self).setdefault("told", False):
            self.told = True
            told["status"] = "RUNNING"
        return told

    return describe_late


def _write_results(env: Any, part: Any, credentials: Any) -> None:
    place, _ = env.stack.pop(), env.stack.pop()
    client = writer.ResourceEvalS3._get_s3_client(part, credentials)
    run = env.map_run_record_pool_manager.get_all()[-1]
    folder = f"{place['Prefix']}/{run.map_run_arn.rpartition(':')[2]}"

    def put(name: str, content: Any) -> dict[str, Any]:
        body = json.dumps(content).encode()
        client.put_object(Bucket=place["Bucket"], Key=f"{folder}/{name}", Body=body)
        return {"Key": f"{folder}/{name}", "Size": len(body)}

    files: dict[str, list[dict[str, Any]]] = {"FAILED": [], "PENDING": [], "SUCCEEDED": []}
    for status in ("FAILED", "SUCCEEDED"):
        if results := [result for result in run.results if result["Status"] == status]:
            files[status].append(put(f"{status}_0.json", results))
    manifest = {
        "DestinationBucket": place["Bucket"],
        "MapRunArn": run.map_run_arn,
        "ResultFiles": files,
    }
    details = {"Bucket": place["Bucket"], "Key": put("manifest.json", manifest)["Key"]}
    env.stack.append({"MapRunArn": run.map_run_arn, "ResultWriterDetails": details})


# --- Lambda ---------------------------------------------------------------------------------------


class _NotAwake(LambdaClientError):
    code = 409

    def __init__(self) -> None:
        super().__init__(
            "CodeArtifactUserPendingException", "Lambda is initializing your function."
        )


class _Invoke:
    """``LambdaFunction.invoke``."""

    def __init__(self) -> None:
        self.one = threading.Lock()
        self.wakes: dict[str, float] = {}
        """When the function is awake, by the key that it refuses until then."""

    def __get__(self, function: Any, _: type) -> Any:
        def invoke(
            body: str | bytes, request_headers: Any, response_headers: dict[str, str]
        ) -> bytes:
            payload = self._answer(json.loads(function.description), json.loads(body))
            answer = json.loads(payload)
            if isinstance(answer, dict) and "errorType" in answer:
                response_headers["x-amz-function-error"] = "Unhandled"
            return payload

        return invoke

    def _answer(self, how: dict[str, str], event: Any) -> bytes:
        begins = event["Items"][0]["s3"]["key"]
        if begins == how.get("waking"):
            now = time.monotonic()
            if now < self.wakes.setdefault(begins, now + WAKING_SECONDS):
                raise _NotAwake
        if begins == how.get("lost"):
            event |= {"Items": None}
        request = urllib.request.Request(how["url"], json.dumps(event).encode())
        with self.one, urllib.request.urlopen(request, timeout=180) as answer:
            payload: bytes = answer.read()
            return payload
