"""Our readers agree with the official clients on what a recorded stream says."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

anthropic_sdk = pytest.importorskip("anthropic")
openai_sdk = pytest.importorskip("openai")

sys.path.insert(0, str(Path(__file__).parents[1]))

from recorded import asked, streams  # noqa: E402

from mllm_pipe.errors import CallFailed  # noqa: E402
from mllm_pipe.runtimes import _sse, anthropic, openai, openai_chat  # noqa: E402

HI = asked(("user", "Hi"))


@pytest.fixture
def served():
    """A server that answers every POST with the bytes that `served.stream` holds; `served.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(self.server.stream)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# Their accumulator appends what a second message_start brings to the first, and takes no input of mcp_tool_use.
NOT_READ_BY_THEM = {"spliced-message-start.chunks.txt", "anthropic-mcp.1.chunks.txt"}


def test_anthropic_streams_are_read_alike(served):
    with anthropic_sdk.Anthropic(base_url=served.url, api_key="x", max_retries=0) as client:
        compared = 0
        for name, stream in streams("anthropic"):
            if name in NOT_READ_BY_THEM:
                continue
            served.stream = stream
            with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]) as theirs:
                final = theirs.get_final_message()
            result = anthropic.reply(_sse.values([stream]), {"model": "m"}, HI)
            ours = [p.get("raw") or anthropic._block(p) for p in result["parts"] if p["type"] != "refusal"]
            assert [block.get("text") for block in ours] == [getattr(b, "text", None) for b in final.content], name
            assert [block.get("input") for block in ours] == [getattr(b, "input", None) for b in final.content], name
            assert [block.get("signature") for block in ours] == [getattr(b, "signature", None) for b in final.content]
            assert result["origin"]["raw_finish"] == final.stop_reason
            assert result["usage"]["output_tokens"] == final.usage.output_tokens
            compared += 1
        assert compared > 20


def test_responses_streams_are_read_alike(served):
    with openai_sdk.OpenAI(base_url=served.url, api_key="x", max_retries=0) as client:
        compared = 0
        for name, stream in streams("openai-responses"):
            try:
                result = openai.reply(_sse.values([stream]), {"model": "m"}, HI)
            except CallFailed:
                continue
            served.stream = stream
            final = None
            for event in client.responses.create(model="m", input="x", stream=True):
                final = event.response if event.type == "response.completed" else final
            assert "".join(p["text"] for p in result["parts"] if p["type"] == "text") == final.output_text, name
            calls = [(i.call_id, i.name) for i in final.output if i.type == "function_call"]
            assert [(p["id"], p["name"]) for p in result["parts"] if p["type"] == "tool_call"] == calls
            compared += 1
        assert compared > 20


def test_chat_streams_are_read_alike(served):
    with openai_sdk.OpenAI(base_url=served.url, api_key="x", max_retries=0) as client:
        compared = 0
        for name, stream in streams("openai-chat"):
            if name.startswith("mistral"):
                continue  # its lists of pieces and calls without an index are its own
            served.stream = stream
            text, calls = "", {}
            for chunk in client.chat.completions.create(model="m", messages=[], stream=True):
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    for call in choice.delta.tool_calls or []:
                        held = calls.setdefault(call.index, {"id": call.id, "name": "", "arguments": ""})
                        held["name"] += call.function.name or ""
                        held["arguments"] += call.function.arguments or ""
            result = openai_chat.reply(_sse.values([stream]), {"model": "m"}, HI)
            assert "".join(p["text"] for p in result["parts"] if p["type"] == "text") == text, name
            made = [openai_chat._chat_reply.call_of(p) for p in result["parts"] if p["type"] == "tool_call"]
            ours = [
                p.get("raw") or m
                for p, m in zip([p for p in result["parts"] if p["type"] == "tool_call"], made, strict=True)
            ]
            assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in ours] == [
                (c["id"], c["name"], c["arguments"] or "{}") for c in calls.values()
            ], name
            compared += 1
        assert compared >= 10
