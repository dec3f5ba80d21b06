"""Our readers agree with the official clients on what a recorded stream says."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

anthropic_sdk = pytest.importorskip("anthropic")
openai_sdk = pytest.importorskip("openai")
genai = pytest.importorskip("google.genai")

sys.path.insert(0, str(Path(__file__).parents[1]))

from recorded import asked, streams  # noqa: E402

from mllm_pipe.errors import CallFailed  # noqa: E402
from mllm_pipe.runtimes import _sse, anthropic, google, openai, openai_chat  # noqa: E402

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


# Recordings in which ids change on the way, or which are of servers whose pieces are their own.
NOT_READ_BY_THE_OTHER = {
    "github-copilot-id-rotation.1.chunks.txt", "openai-client-tool-search.1.chunks.txt",
    "mistral-reasoning.chunks.txt", "mistral-tool-call.chunks.txt", "moonshotai-stream.chunks.txt",
    "anthropic-fallback-tool-call.sse", "deepseek-text.chunks.txt",
}  # fmt: skip


def said(result):
    return "".join(part["text"] for part in result["parts"] if part["type"] == "text")


def called(result):
    """(id, name, argument text) of the calls, as they go back."""
    found = []
    for part in result["parts"]:
        if part["type"] == "tool_call":
            call = openai_chat._chat_reply.call_of(part) if "arguments" not in part.get("raw", {}) else part["raw"]
            call = part["raw"] if "function" in part.get("raw", {}) else call
            function = call.get("function", call)
            found.append((part["id"], function["name"], function["arguments"]))
    return found


def test_responses_streams_are_read_alike(served):
    with openai_sdk.OpenAI(base_url=served.url, api_key="x", max_retries=0) as client:
        compared = 0
        for name, stream in streams("openai-responses"):
            try:
                result = openai.reply(_sse.values([stream]), {"model": "m"}, HI)
            except CallFailed:
                continue
            if name in NOT_READ_BY_THE_OTHER:
                continue
            served.stream = stream
            with client.responses.stream(model="m", input="x") as theirs:
                final = theirs.get_final_response()
            calls = [(i.call_id, i.name, i.arguments) for i in final.output if i.type == "function_call"]
            assert (said(result), called(result)) == (final.output_text, calls), name
            assert result["origin"]["raw_finish"] == final.status
            assert result["usage"]["output_tokens"] == final.usage.output_tokens
            compared += 1
        assert compared > 20


def test_chat_streams_are_read_alike(served):
    with openai_sdk.OpenAI(base_url=served.url, api_key="x", max_retries=0) as client:
        compared = 0
        for name, stream in streams("openai-chat"):
            if name in NOT_READ_BY_THE_OTHER:
                continue
            served.stream = stream
            with client.chat.completions.stream(model="m", messages=[]) as theirs:
                final = theirs.get_final_completion()
            (choice,) = final.choices
            result = openai_chat.reply(_sse.values([stream]), {"model": "m"}, HI)
            calls = [(c.id, c.function.name, c.function.arguments or "{}") for c in choice.message.tool_calls or []]
            assert (said(result), called(result)) == (choice.message.content or "", calls), name
            assert result["origin"]["raw_finish"] == choice.finish_reason
            if not name.startswith("xai"):  # xAI counts reasoning apart, and they leave it out
                assert result["usage"]["output_tokens"] == final.usage.completion_tokens
            compared += 1
        assert compared >= 10


def test_google_streams_are_read_alike(served):
    client = genai.Client(api_key="x", http_options=genai.types.HttpOptions(base_url=served.url, api_version="v1beta"))
    compared = 0
    for name, stream in streams("google"):
        if "arguments" in name or "no-args" in name:
            continue  # arguments in pieces: they do not put them together
        served.stream = stream
        parts, last = [], None
        for last in client.models.generate_content_stream(model="m", contents="x"):
            parts += last.candidates[0].content.parts or []
        result = google.reply(_sse.values([stream]), {"model": "m"}, HI)
        assert said(result) == "".join(part.text for part in parts if part.text and not part.thought), name
        thoughts = "".join(part["text"] for part in result["parts"] if part["type"] == "reasoning")
        assert thoughts == "".join(part.text for part in parts if part.text and part.thought), name
        calls = [(part.function_call.name, part.function_call.args) for part in parts if part.function_call]
        assert [(p["name"], p["arguments"]) for p in result["parts"] if p["type"] == "tool_call"] == calls, name
        assert result["origin"]["raw_finish"] == last.candidates[0].finish_reason.value
        used = last.usage_metadata
        output = (used.candidates_token_count or 0) + (used.thoughts_token_count or 0)
        assert result["usage"]["output_tokens"] == output
        compared += 1
    assert compared >= 4
