"""Laws of rendering that hold for every API, for threads that nobody would write."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import answered, asked, steps, turn

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import (
    _turns,
    anthropic,
    claude,
    codex,
    gemini,
    google,
    openai,
    openai_chat,
    opencode,
)

APIS = {
    "anthropic": (anthropic, "messages", "claude-opus-5-5"),
    "openai": (openai, "input", "gpt-6-sol"),
    "openai-chat": (openai_chat, "messages", "m"),
    "alternating": (openai_chat, "messages", "m"),
    "google": (google, "contents", "gemini-3.8-flash"),
}
RULES = {
    "anthropic": anthropic._rule({"model": "m"}),
    "openai": openai._rule({"model": "m"}),
    "openai-chat": openai_chat._rule({"model": "m"}),
    "mistral": openai_chat._rule({"model": "m", "profile": {"tool_id": "mistral9"}}),
    "google": google._rule({"model": "m"}),
}

texts = st.text(max_size=12)
names = st.text(min_size=1, max_size=70)
idents = st.sampled_from(["a", "b", "c", "call:1", "x" * 65, "id with space", "ünïcode"])
image = {"type": "file", "media_type": "image/png", "data": "eA==", "name": "x.png"}
said = st.one_of(
    texts.map(lambda text: {"type": "text", "text": text}),
    st.just(image),
    texts.map(lambda text: {"type": "refusal", "text": text}),
    st.integers(0, 9).map(lambda value: {"type": "data", "value": value}),
    st.just({"type": "opaque", "raw": {"type": "server_tool_use", "id": "s", "name": "n", "input": {}}}),
    st.just({"type": "unheard_of", "x": 1}),
)
reasoning = texts.map(lambda text: {"type": "reasoning", "text": text, "raw": {"type": "thinking", "thinking": text}})
calls = st.builds(
    lambda ident, name, arguments, raw: (
        {"type": "tool_call", "id": ident, "name": name, "arguments": arguments}
        | ({"arguments_raw": raw} if raw else {})
    ),
    idents,
    names,
    st.dictionaries(texts, st.integers(0, 9), max_size=2),
    st.one_of(st.none(), st.just("{broken")),
)
results = st.builds(
    lambda ident, content, error: {"type": "tool_result", "call_id": ident, "content": content, "is_error": error},
    idents,
    st.one_of(texts, st.just([{"type": "text", "text": "t"}, image])),
    st.booleans(),
)
origins = st.one_of(
    st.none(),
    st.builds(
        lambda api, model: {"api": api, "endpoint": RULES[api]["endpoint"], "model": model, "prefix": "0" * 64},
        st.sampled_from(["anthropic", "openai", "openai-chat", "google"]),
        st.sampled_from(["m", "other"]),
    ),
)
assistants = st.tuples(st.just("assistant"), st.lists(st.one_of(said, reasoning, calls), max_size=4), origins)
users = st.tuples(st.just("user"), st.lists(st.one_of(said, results), max_size=4), st.none())
systems = st.tuples(st.just("system"), texts.map(lambda text: [{"type": "text", "text": text}]), st.none())


@st.composite
def requests(draw):
    """A request as a view has them: user-side messages between two answers are one turn, and the last is a user's."""
    drawn = draw(st.lists(st.one_of(assistants, users, systems), max_size=8))
    drawn.append(draw(users))
    turns = []
    for role, parts, origin in drawn:
        if role == "user" and turns and turns[-1]["role"] == "user":
            turns[-1]["parts"] += parts
        else:
            turns.append(turn(len(turns), role, list(parts), origin))
    return asked(system=draw(st.one_of(st.none(), texts))) | {"turns": turns}


@pytest.mark.parametrize("api", APIS)
@settings(max_examples=300, deadline=None)
@given(request=requests())
def test_what_was_sent_and_answered_is_a_prefix_of_what_is_sent_later(api, request):
    module, field, model = APIS[api]
    target = {"runtime": api, "kind": api, "model": model, "profile": {"alternate": api == "alternating"}}
    before = deepcopy(request)
    rendered = [module.request(target, step)[0] for step in steps(request, answered_only=True)]
    assert request == before
    assert rendered[-1] == module.request(deepcopy(target), deepcopy(request))[0]
    for earlier, later in zip(rendered, rendered[1:], strict=False):
        assert json.dumps(later[field])[:-1].startswith(json.dumps(earlier[field])[:-1])
        assert {**earlier, field: 0} == {**later, field: 0}


def blocks(made):
    """What claude is given, block by block: user turns that nothing stands between are one message there."""
    lines = [json.loads(line) for line in (made["history"] + made["stdin"]).splitlines()]
    found = [(line["type"], block) for line in lines for block in line["message"]["content"]]
    return [(role, block) for role, block in found if block != {"type": "text", "text": ""}]  # it is dropped again


# What a program is given of all turns, as a list.
PROGRAMS = {
    "claude": (claude, blocks),
    "codex": (codex, lambda made: [*made["items"], codex._item({"type": "text", "text": made["stdin"]}, "user")]),
    "gemini": (gemini, lambda made: made["history"].splitlines()),
    "opencode": (opencode, lambda made: [
        *made["messages"], {"role": "user", "parts": [{"type": "text", "text": made["stdin"]}]}]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
@settings(max_examples=300, deadline=None)
@given(request=requests())
def test_what_a_program_was_given_is_a_prefix_of_what_it_is_given_later(name, request):
    module, history = PROGRAMS[name]
    target = {"runtime": name, "kind": name, "model": "p/m"}
    before = deepcopy(request)
    told = [history(module.session(target, step)) for step in steps(request, answered_only=True)]
    assert request == before
    for earlier, later in zip(told, told[1:], strict=False):
        assert later[: len(earlier)] == earlier


UNKNOWN = {"type": "brand_new_thing", "id": "x1", "payload": {"a": [1, {"b": None}]}}
UNKNOWN_PART = {"brandNewThing": {"id": "x1", "payload": {"a": [1, {"b": None}]}}}
ANSWERS = {  # a reply with an event and a part that nobody has heard of
    "anthropic": [
        {"type": "message_start", "message": {"id": "m", "model": "m", "usage": {"input_tokens": 1}}},
        {"type": "brand_new_event", "x": 1},
        {"type": "content_block_start", "index": 0, "content_block": UNKNOWN},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "said"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ],
    "openai": [
        {"type": "response.brand_new.delta", "x": 1},
        {"type": "response.output_item.done", "output_index": 0, "item": UNKNOWN},
        {"type": "response.completed", "response": {"status": "completed", "output": [
            UNKNOWN, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "said"}]}]}},
    ],
    "openai-chat": [
        {"brand_new": 1},
        {"choices": [{"index": 0, "delta": {"content": [UNKNOWN, {"type": "text", "text": "said"}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ],
    "google": [
        {"brandNew": 1},
        {"candidates": [{"content": {"parts": [UNKNOWN_PART, {"text": "said"}]}, "finishReason": "STOP"}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("api", ANSWERS)
def test_what_nobody_has_heard_of_is_kept_and_goes_back_to_its_maker_alone(api):
    module, _, model = APIS[api]
    target = {"runtime": api, "kind": api, "model": model}
    request = asked(("user", "Hi"))
    result = module.reply(ANSWERS[api], target, request)
    assert [part["type"] for part in result["parts"]] == ["opaque", "text"]
    unknown = json.dumps(UNKNOWN_PART if api == "google" else UNKNOWN)
    later = answered(module, target, request, result)
    for name, (other, _, its_model) in APIS.items():
        body, losses = other.request({"runtime": name, "kind": name, "model": its_model}, later)
        assert (unknown in json.dumps(body), losses == []) == (other is module, other is module), name
        assert "said" in json.dumps(body)


@settings(max_examples=300, deadline=None)
@given(request=requests())
def test_every_call_has_its_result_right_after_it(request):
    for rule in RULES.values():
        turns, losses = _turns.settle(request["turns"], rule)
        for index, made in enumerate(turns):
            here = [part["id"] for part in made["parts"] if part["type"] == "tool_call"]
            after = turns[index + 1]["parts"] if index + 1 < len(turns) else []
            answers = [part["call_id"] for part in after if part["type"] == "tool_result"]
            if made["role"] == "assistant":
                assert answers == here and [p["type"] for p in after[: len(here)]] == ["tool_result"] * len(here)
            else:
                assert here == []
            assert made["parts"] and all(set(loss) == {"what", "action", "why"} for loss in losses)


@settings(max_examples=300, deadline=None)
@given(request=requests())
def test_to_a_foreign_api_no_raw_goes_and_no_id_twice(request):
    for rule in RULES.values():
        foreign = [made | {"origin": None} for made in request["turns"]]
        turns, _ = _turns.settle(foreign, rule)
        assert not any("raw" in part for made in turns for part in made["parts"])
        found = [part["id"] for made in turns for part in made["parts"] if part["type"] == "tool_call"]
        assert len(found) == len(set(found)) and all(rule["ids"].fullmatch(ident) for ident in found)


@given(st.lists(st.text(min_size=1), unique=True))
def test_ids_and_names_are_legal_distinct_and_found_again(words):
    for rule in RULES.values():
        ids = [_turns.legal_id(word, rule) for word in words]
        sent = [_turns.legal_name(word, rule) for word in words]
        assert len(set(ids)) == len(set(sent)) == len(words)
        assert all(rule["ids"].fullmatch(ident) for ident in ids) and all(rule["names"].fullmatch(n) for n in sent)
        assert all(_turns.legal_name(name, rule) == name for name in sent)
        request = asked(("user", "x"), tools=[{"name": word} for word in words])
        back = _turns.original_names(request, rule)
        assert [back[name] for name in sent] == words


def test_tools_that_would_have_one_name_are_refused_and_nothing_is_sent():
    rule = RULES["openai"]
    for names in (["f", "f"], ["a.b", _turns.legal_name("a.b", rule)]):
        with pytest.raises(CallFailed) as refused:
            _turns.tools(asked(("user", "x"), tools=[{"name": name} for name in names]), rule, [])
        said = f"the tools {names[0]} and {names[1]} would both be called {names[1]}"
        assert (refused.value.code, refused.value.billed, str(refused.value)) == ("bad_request", "no", said)


def test_a_result_counts_only_before_the_next_answer():
    request = asked(
        ("assistant", [{"type": "tool_call", "id": "a", "name": "f", "arguments": {}}]),
        ("user", "never mind"),
        ("assistant", "fine"),
        ("user", [{"type": "tool_result", "call_id": "a", "content": "late"}, {"type": "text", "text": "there"}]),
    )
    turns, losses = _turns.settle(request["turns"], RULES["openai"])
    assert turns[1]["parts"][0]["content"] == "not executed"
    assert [loss["action"] for loss in losses] == ["dropped", "synthesised"]
