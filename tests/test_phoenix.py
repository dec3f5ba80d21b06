"""What --otlp sends, read back from a real collector by its API: Arize Phoenix, started here on loopback.

MLLM_TEST_PHOENIX is its program; .ci/run installs it into an environment of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import orjson
import pytest

pytestmark = [
    pytest.mark.skipif("MLLM_TEST_PHOENIX" not in os.environ, reason="MLLM_TEST_PHOENIX names no Phoenix"),
    pytest.mark.xdist_group("phoenix"),  # one is started for all
]


LONG_S = 600.0  # only what hangs takes so long


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return orjson.loads(answer.read())


def started(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A Phoenix that runs, or has ended because somebody else has taken a port of it before it could; its URL."""
    port = free_port()
    own = {"PHOENIX_WORKING_DIR": str(folder), "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(port),
           "PHOENIX_GRPC_PORT": str(free_port()), "PHOENIX_TELEMETRY_ENABLED": "false"}  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PHOENIX_"))}
    program = subprocess.Popen([os.environ["MLLM_TEST_PHOENIX"], "serve"], env=kept | own, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + LONG_S
    while program.poll() is None:
        try:
            read(f"{url}/v1/projects")
            break
        except (OSError, ValueError):  # nobody is there yet, or somebody else
            assert time.monotonic() < until, "Phoenix did not start"
            time.sleep(0.5)
    return program, url


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory):
    """The URL of a running one."""
    for _ in range(5):
        program, url = started(tmp_path_factory.mktemp("phoenix"))
        if program.poll() is None:
            break
    assert program.poll() is None, "Phoenix ends whatever its ports"
    yield url
    program.terminate()
    program.wait()


def spans(url: str, project: str, count: int) -> list[dict[str, Any]]:
    """The spans of a project, the oldest first, once there are so many: they are stored a moment after they are taken."""
    until = time.monotonic() + LONG_S
    while True:
        try:
            found = read(f"{url}/v1/projects/{project}/spans?limit=100")["data"]
        except urllib.error.HTTPError as none:
            assert none.code == 404, "the project is made with its first span"
            found = []
        if len(found) >= count or time.monotonic() > until:
            return sorted(found, key=lambda span: (span["start_time"], span["span_kind"]))
        time.sleep(0.2)


LINE = ("thread-append --new 'Write a haiku.' | dispatch -q --to echo:small --as writer | dispatch -q --to exec:cat --as critic 'Review it.'"
        " | judge -q --by echo:large --rubric correctness > t")  # fmt: skip


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_phoenix_has_what_trace_shows(sh, phoenix, compression):
    project = f"of-{compression}"
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": phoenix, "OTEL_EXPORTER_OTLP_COMPRESSION": compression, "OTEL_EXPORTER_OTLP_HEADERS": "x-a=b",
            "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={project}"}  # fmt: skip
    sh(LINE)
    for _ in range(2):  # twice, and there are as many
        assert sh("trace --otlp env < t", **told) == (0, "", "trace: 5 spans of 1 run sent\n")
    (run,) = sh("trace < t").records
    root, writer, critic, verdict, judge = found = spans(phoenix, project, 5)
    assert len(found) == 5
    assert [(span["name"], span["span_kind"]) for span in found] == [
        ("invoke_workflow", "CHAIN"), ("chat small", "LLM"), ("invoke_agent critic", "AGENT"), ("judge correctness", "EVALUATOR"),
        ("chat large", "LLM")]  # fmt: skip
    assert {span["context"]["trace_id"] for span in found} == {run["id"].replace("-", "")}
    ids = {span["name"]: span["context"]["span_id"] for span in found}
    assert [span["parent_id"] for span in found] == [None, *[ids["invoke_workflow"]] * 3, ids["judge correctness"]]
    counted = [(stage["usage"] or {}).get("input_tokens") for stage in run["stages"]]
    assert [span["attributes"].get("llm.token_count.prompt") for span in (writer, critic, judge)] == counted
    assert sum(span["attributes"].get("mllm.cost_usd", 0) for span in found) == run["cost_usd"]
    (event,) = [event for event in verdict["events"] if event["attributes"]["gen_ai.evaluation.name"] == "correctness"][:1]
    assert event["attributes"]["gen_ai.evaluation.score.label"] == "pass"
    assert {span["attributes"]["session.id"] for span in found} == {run["stages"][0]["thread"]}
    assert root["attributes"]["mllm.run.id"] == run["id"]
    assert "haiku" not in orjson.dumps(found).decode()


def test_phoenix_reads_what_was_said_if_it_is_told(sh, phoenix):
    sh(LINE)
    sh("trace -q --content --otlp env < t", OTEL_EXPORTER_OTLP_ENDPOINT=phoenix, OTEL_RESOURCE_ATTRIBUTES="openinference.project.name=told")
    said = {span["name"]: span["attributes"] for span in spans(phoenix, "told", 5)}["chat small"]
    for side in ("input", "output"):
        shown = {name: value for name, value in said.items() if name.startswith(f"llm.{side}_messages.0.message")}
        assert shown.pop(f"llm.{side}_messages.0.message.role") == {"input": "user", "output": "assistant"}[side]
        assert "Write a haiku." in shown.values()
