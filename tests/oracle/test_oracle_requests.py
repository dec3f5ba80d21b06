"""Our requests are legal: the vendors' own request types, made strict, accept them.

Runs where the official clients are installed: pip install -e '.[test,oracle]'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Union

import pytest

pytest.importorskip("anthropic")
pytest.importorskip("openai")
pytest.importorskip("google.genai")

from anthropic.types import message_create_params as messages
from google.genai import types as genai
from openai.types.chat import completion_create_params as completions
from openai.types.responses import response_create_params as responses
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

sys.path.insert(0, str(Path(__file__).parents[1]))

from recorded import answered, asked, bodies, steps, streams, torture  # noqa: E402

from mllm_pipe.errors import CallFailed  # noqa: E402
from mllm_pipe.runtimes import _sse, anthropic, google, openai, openai_chat  # noqa: E402

PRESETS = json.loads((Path(anthropic.__file__).parents[1] / "data" / "presets.json").read_text())


def strict(*types):
    """A validator of a union of TypedDicts that forbids keys they do not know, at every depth."""
    for kind in types:
        kind.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    adapter = TypeAdapter(Union[types])  # noqa: UP007
    return lambda body: (adapter, force(adapter.validate_python(body)))  # a dropped adapter panics while being forced


def force(value):
    """Walks the value: the SDKs declare Iterable[...], which pydantic checks only when it is read."""
    if isinstance(value, dict):
        return {key: force(inner) for key, inner in value.items()}
    if isinstance(value, (str, bytes, BaseModel)) or value is None or not hasattr(value, "__iter__"):
        return value
    return [force(inner) for inner in value]


def camel(name):
    first, *others = name.split("_")
    return first + "".join(word.title() for word in others)


class GenerateContent(BaseModel):
    """The body of generateContent, of the SDK's own types of its parts."""

    model_config = ConfigDict(extra="forbid", alias_generator=camel)

    contents: list[genai.Content]
    system_instruction: genai.Content | None = None
    tools: list[genai.Tool] | None = None
    tool_config: genai.ToolConfig | None = None
    generation_config: genai.GenerationConfig | None = None


def check_google(body):
    GenerateContent.model_validate(body)
    assert {content["role"] for content in body["contents"]} <= {"user", "model"}


DIALECTS = {
    "anthropic": (anthropic, strict(messages.MessageCreateParamsStreaming), "claude-opus-5-5", "anthropic"),
    "openai": (openai, strict(responses.ResponseCreateParamsStreaming), "gpt-6-sol", "openai-responses"),
    "chat": (openai_chat, strict(completions.CompletionCreateParamsStreaming), "gpt-4.1", "openai-chat"),
    "google": (google, check_google, "gemini-3.8-flash", "google"),
}


@pytest.fixture(params=DIALECTS)
def dialect(request):
    module, check, model, folder = DIALECTS[request.param]
    return module, check, {"runtime": request.param, "kind": request.param, "model": model}, folder


@pytest.mark.parametrize("name", torture())
def test_every_step_of_a_torture_thread_is_a_legal_request(dialect, name):
    module, check, target, _ = dialect
    for step in steps(torture()[name]):
        check(module.request(target, step)[0])


def made_by(maker, request):
    """The request with its answers as those of one API; what only their true maker understands is left out."""
    module, _, model, _ = DIALECTS[maker]
    endpoint = module._rule({"model": model})["endpoint"]
    origin = {"api": module.API, "endpoint": endpoint, "model": model, "prefix": "0" * 64}
    turns = []
    for turn in request["turns"]:
        if turn["role"] == "assistant":
            parts = [{name: value for name, value in part.items() if name != "raw"} for part in turn["parts"]]
            turn = turn | {"origin": origin, "parts": [part for part in parts if part["type"] != "opaque"]}
        turns.append(turn)
    return request | {"turns": turns}


@pytest.mark.parametrize("maker", DIALECTS)
@pytest.mark.parametrize("taker", DIALECTS)
def test_from_every_dialect_to_every_one_every_step_of_a_torture_thread_is_legal(maker, taker):
    module, check, model, _ = DIALECTS[taker]
    target = {"runtime": taker, "kind": taker, "model": model}
    for name in torture():
        for step in steps(made_by(maker, torture()[name])):
            check(module.request(target, step)[0])


@pytest.mark.parametrize("maker, taker", [(one, other) for one in DIALECTS for other in DIALECTS if one != other])
def test_from_every_dialect_to_every_other_a_real_reply_is_legal_and_what_is_lost_is_listed(maker, taker):
    source, _, its_model, folder = DIALECTS[maker]
    module, check, model, _ = DIALECTS[taker]
    count = 0
    for name, request in replies(source, {"runtime": maker, "kind": maker, "model": its_model}, folder):
        body, losses = module.request({"runtime": taker, "kind": taker, "model": model}, request)
        check(body)
        (answer,) = [turn["parts"] for turn in request["turns"] if turn["role"] == "assistant"]
        lost = [part["type"] for part in answer if part["type"] in ("opaque", "reasoning")]
        assert sum(loss["action"] == "dropped" for loss in losses) >= bool(lost), name
        for part in answer:
            if part["type"] == "text" and part["text"].strip():
                assert json.dumps(part["text"])[1:-1] in json.dumps(body), name
        count += 1
    assert count > 5


def test_tools_schema_choice_and_length_are_legal(dialect):
    module, check, target, _ = dialect
    tools = [tool | {"name": f"t{number}"} for number, tool in enumerate(torture()["plain-swap"]["tools"])]
    for choice in ("auto", "none", "required", {"name": "t1"}, None):
        request = asked(("user", "x"), tools=tools, tool_choice=choice, schema={"type": "object"}, system="S")
        check(module.request(target | {"max_tokens": 99}, request)[0])


# What the types of Nov 2026 leave out: blocks that only the beta types have, and items of xAI's own. The recordings
# are replies of the vendors, and go back as they came.
UNKNOWN_TO_THE_TYPES = {
    "anthropic": ("anthropic-advisor", "anthropic-mcp", "anthropic-compaction"),
    "openai": ("xai-", "openai-custom-tool"),
}


def replies(module, target, folder):
    request = asked(("user", "Hi"))
    recordings = [(name, [body]) for name, body in bodies(folder)]
    recordings += [(name, _sse.values([stream])) for name, stream in streams(folder)]
    for name, values in recordings:
        try:
            yield name, answered(module, target, request, module.reply(values, target, request))
        except CallFailed:
            assert "error" in name or "wrapper" in name or "429" in name or "transcription" in name


def test_a_reply_goes_back_as_a_legal_request(dialect):
    module, check, target, folder = dialect
    refused = {}
    count = 0
    for name, request in replies(module, target, folder):
        count += 1
        try:
            check(module.request(target, request)[0])
        except ValidationError as error:
            refused[name] = [f"{e['type']} {e['loc']}" for e in error.errors()][:3]
    assert count > 5
    known = UNKNOWN_TO_THE_TYPES.get(target["runtime"], ())
    assert not [name for name in refused if not name.startswith(known)], refused


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_request_is_legal_but_for_what_it_does_otherwise(preset):
    check = DIALECTS["chat"][1]
    target = {"runtime": preset, "kind": "openai-chat", "model": "m", "max_tokens": 9} | PRESETS[preset]
    for name in torture():
        body = openai_chat.request(target, torture()[name])[0]
        for message in body["messages"]:
            message.pop("reasoning_content", None)
        check(body)
