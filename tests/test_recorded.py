"""Every recorded reply of the vendors, through the commands: it becomes records, and the next request has it as it came.

That what is sent back equals what came is held for each recording in test_anthropic.py and its siblings; here it goes
through two processes, the envelope and its schema, and is sent by the second one.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from recorded import answered, asked, bodies, streams

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _sse, anthropic, google, openai, openai_chat

DIALECTS = {
    "anthropic": (anthropic, "anthropic", "messages"),
    "openai": (openai, "openai-responses", "input"),
    "openai-chat": (openai_chat, "openai-chat", "messages"),
    "google": (google, "google", "contents"),
}
# What is recorded of these is no whole answer, and what it is instead.
NO_ANSWER = {
    "anthropic-refusal.chunks.txt": "refusal",
    "anthropic-refusal.json": "refusal",
    "deepseek-text.chunks.txt": "length",
    "deepseek-text.json": "length",
    "google-429-retry-info.json": "rate_limit",
    "openai-error.1.chunks.txt": "billing",
    "openai-error.1.json": "billing",
    "parallel-tool-call-wrapper.1.chunks.txt": "malformed",
    "reasoning-model-legacy-parameter-error.json": "bad_request",
    "groq-transcription-text.json": "cut",
}


@pytest.fixture
def server():
    """Answers with the recording whose name the request's first text is; `heard`: {name: its newest request}."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            name = first_text(body)
            with self.server.lock:
                self.server.heard[name] = body
            self.send_response(200)
            kind = "application/json" if name.endswith(".json") else "text/event-stream"
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(self.server.recordings[name])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads, running.lock, running.heard = True, threading.Lock(), {}
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def first_text(value):
    """The first user's text of a request in any dialect."""
    for key in ("messages", "input", "contents"):
        if key in value:
            content = value[key][0].get("content", value[key][0].get("parts"))
            return content if isinstance(content, str) else content[0]["text"]
    raise AssertionError(value)


@pytest.mark.parametrize("name", DIALECTS)
def test_every_recorded_reply_becomes_records_and_goes_back_as_it_came(sh, work, server, name):
    module, folder, field = DIALECTS[name]
    server.recordings = dict(streams(folder)) | {name: json.dumps(body).encode() for name, body in bodies(folder)}
    first = [{"v": 1, "type": "message", "thread": recording, "id": "q", "role": "user", "content": recording}
             for recording in server.recordings]  # fmt: skip
    (work / "asked").write_text("".join(json.dumps(record) + "\n" for record in first))
    to = f"dispatch -q -j 4 --retry-after-cap 1 --to {name}:m --base-url {server.url}"
    ran = sh(f"{to} < asked | tee answers | {to} 'And then?' > again; mllm validate < again")
    assert ran.status == 0 and ran.out.endswith(" records hold to the envelope, 0 lines do not\n")
    assert ran.err.count("\n") == len(set(NO_ANSWER) & set(server.recordings))  # each is told of once
    records = [json.loads(line) for line in (work / "answers").read_text().splitlines()]
    errors = {record["thread"]: record["code"] for record in records if record["type"] == "error"}
    assert errors == {recording: code for recording, code in NO_ANSWER.items() if recording in server.recordings}
    target = {"runtime": name, "kind": name, "model": "m", "base_url": server.url}
    for recording, data in server.recordings.items():
        if recording in errors:
            continue
        request = asked(("user", recording))
        try:
            result = module.reply(_sse.values([data]), target, request)
        except CallFailed as failure:
            raise AssertionError(recording) from failure
        expected = module.request(target, answered(module, target, request, result))[0]
        assert server.heard[recording][field] == expected[field], recording
