"""The table of models, what it is asked, which options a model takes, and `mllm models`."""

from __future__ import annotations

import hashlib
import re
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_pipe import modelfile, models
from mllm_pipe.errors import Usage

APIS = {"anthropic": "anthropic", "openai": "openai", "openai-chat": "xai", "google": "google"}
TABLE = models.shipped()
ROWS = [(provider, model) for provider, known in TABLE["models"].items() for model in known]

values = st.one_of(st.floats(0, 2), st.integers(1, 10**7), st.text(max_size=5), st.booleans(), st.lists(st.text(), max_size=2),
                   st.sampled_from([*models.EFFORTS, "flex", "auto", "default", None]))  # fmt: skip
sound = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2), "top_p": st.floats(0, 1), "top_k": st.integers(1, 99), "seed": st.integers(0, 9),
        "stop": st.sampled_from(["END", ["A", "B"]]), "effort": st.sampled_from(models.EFFORTS),
        "max_tokens": st.integers(1, 10**7), "presence_penalty": st.floats(-2, 2), "frequency_penalty": st.floats(-2, 2),
        "verbosity": st.sampled_from(["low", "medium", "high"]),
        "service_tier": st.sampled_from(["auto", "default", "flex", "priority"]),
    },
)  # fmt: skip
rows = st.one_of(st.none(), st.sampled_from(ROWS).map(lambda row: models.find(*row)))


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_shipped_table_has_its_shape_and_says_of_when_it_is():
    assert modelfile.checked(TABLE) is TABLE
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", TABLE["date"]) and TABLE["version"] == "litellm 1.106.2"
    assert "MIT" in TABLE["license"] and set(TABLE["models"]) >= {"anthropic", "openai", "google"}


def test_a_price_keeps_the_text_that_it_came_with():
    data = b'{"xai/m": {"litellm_provider": "xai", "mode": "chat", "input_cost_per_token": 1.25e-06, '
    data += b'"output_cost_per_token": 0.100000000000000005551115123125, "cache_read_input_token_cost": 0}}'
    made = modelfile.read(data, "litellm 1", "2026-01-01")
    prices = made["models"]["xai"]["m"]["prices"]
    assert list(map(Decimal, prices.values())) == [0, Decimal("1.25e-06"), Decimal("0.100000000000000005551115123125")]
    assert made["sha256"] == hashlib.sha256(data).hexdigest()
    assert orjson.loads(modelfile.text_of(made)) == made == modelfile.read(modelfile.text_of(made).encode(), "", "")


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.integers(-9, 9) | st.text() | st.sampled_from(["chat", "openai", "1e-6"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["litellm_provider", "mode", "models", "source", "date", "version", "prices", "supports", "gpt",
                         "openai", "input_cost_per_token", "output_cost_per_token", "off_peak_pricing"]), inner),
    max_leaves=20).map(orjson.dumps))  # fmt: skip
def test_what_is_no_table_is_refused_in_one_line(data):
    try:
        modelfile.checked(modelfile.read(data, "v", "2026-01-01"))
    except Usage as refusal:
        assert str(refusal).startswith("is n") and "\n" not in str(refusal)


@pytest.mark.parametrize("name, value", [
    ("mode", "image"), ("prices", {}), ("prices", {"input_cost_per_token": "-1", "output_cost_per_token": "1"}),
    ("prices", {"input_cost_per_token": "NaN", "output_cost_per_token": "1"}), ("supports", {"vision": "yes"}),
    ("max_input_tokens", 0), ("max_input_tokens", "8"), ("factors", {"us": "x"}), ("efforts", "low"),
    ("deprecation_date", "soon"), ("off_peak", {}), ("default_effort", 1),
    ("off_peak", {"prices": {}, "windows": [{"hours_utc": ["24:00-25:00"]}]}),
])  # fmt: skip
def test_a_row_with_a_wrong_member_is_refused_by_name(name, value):
    row = {"mode": "chat", "prices": {"input_cost_per_token": "1", "output_cost_per_token": "2"}, "supports": {}}
    table = {"date": "d", "version": "v", "source": "s", "models": {"p": {"m": row}}}
    assert modelfile.checked(table)
    with pytest.raises(Usage, match=r"^is no table of models: p/m: "):
        modelfile.checked(table | {"models": {"p": {"m": row | {name: value}}}})


# -- what it is asked -------------------------------------------------------------------------------------------------


@given(st.sampled_from(ROWS))
def test_every_model_is_found_by_its_own_name(row):
    found = models.find(*row)
    assert (found["provider"], found["model"]) == row


@pytest.mark.parametrize("provider, model, found", [
    ("anthropic", "claude-opus-5-5-20261001", "claude-opus-5-5"),
    ("claude", "claude-opus-5-5", "claude-opus-5-5"),
    ("codex", "gpt-6-sol", "gpt-6-sol"),
    ("api.openai.com", "gpt-6-sol-2026-09-30", "gpt-6-sol"),
    ("openai", "ft:gpt-4.1-2025-04-14:acme::b1", "ft:gpt-4.1-2025-04-14"),
    ("gemini", "models/gemini-3.8-flash", "gemini-3.8-flash"),
    ("google", "gemini-3.8-flash-001", "gemini-3.8-flash"),
])  # fmt: skip
def test_a_name_is_found_by_the_rules_of_its_vendor(provider, model, found):
    assert models.find(provider, model)["model"] == found


@pytest.mark.parametrize("provider, model", [
    ("openai", "gpt-6-sol-mini"), ("openai", "gpt-6-so"), ("openai", "gpt-6-sol-20260930"), ("openai", "GPT-6-SOL"),
    ("anthropic", "claude-opus-5-5-2026-10-01"), ("anthropic", "gpt-6-sol"), ("mistral", "mistral-small-2409"),
    ("openai", "ft:gpt-9:acme::b1"), ("ollama", "gpt-6-sol"), ("openai", ""), ("", "gpt-6-sol"), (None, None),
])  # fmt: skip
def test_what_only_looks_like_a_known_name_is_unknown(provider, model):
    assert models.find(provider, model) is None


@given(st.text(), st.text())
def test_no_name_is_too_odd_to_be_asked(provider, model):
    row = models.find(provider, model)
    assert row is None or row["provider"] == models.provider_of(provider)


def test_what_the_table_does_not_say_is_unknown_and_not_false():
    row = models.find("anthropic", "claude-opus-5-5")
    assert [models.capability(row, flag) for flag in ("vision", "forced_tool_use", "audio_input")] == [True, False, None]
    assert (models.window(row), models.output_limit(row)) == (1_000_000, 128_000)
    assert models.capability(None, "vision") is models.window(None) is models.output_limit(None) is None


# -- options ----------------------------------------------------------------------------------------------------------


@given(sound, st.sampled_from(sorted(APIS)), rows)
def test_every_option_is_sent_or_listed(options, api, row):
    fields, losses = models.fit(options, api, row)
    lost = {loss["what"] for loss in losses if loss["action"] == "dropped"}
    assert leaves(fields) == len(set(options) - lost)
    assert lost | {loss["what"] for loss in losses} <= set(options)
    assert all(loss["action"] in ("dropped", "downgraded") and loss["why"] for loss in losses)


@given(sound, st.sampled_from(sorted(APIS)), rows)
def test_what_was_fitted_fits_and_the_callers_options_stay(options, api, row):
    before = orjson.dumps(options)
    first = models.fit(options, api, row)
    assert models.fit(options, api, row) == first and orjson.dumps(options) == before


@given(st.dictionaries(st.sampled_from(models.OPTIONS), values), st.sampled_from(sorted(APIS)), rows)
def test_a_value_that_is_none_is_refused_by_the_name_of_its_option(options, api, row):
    try:
        models.fit(options, api, row)
    except Usage as refusal:
        assert re.match(rf"option ({'|'.join(models.OPTIONS)}): .* is not ", str(refusal), re.DOTALL)


def leaves(fields):
    return sum(leaves(value) if isinstance(value, dict) else 1 for value in fields.values())


def fitted(api, model=None, **options):
    return models.fit(options, api, models.find(APIS[api], model))


def test_each_api_has_its_own_places():
    options = {"temperature": 0.5, "top_p": 1, "top_k": 5, "seed": 7, "stop": "END", "effort": "high", "max_tokens": 99,
               "presence_penalty": 0.1, "frequency_penalty": 0.2, "verbosity": "low", "service_tier": "flex"}  # fmt: skip
    dropped = {}
    sent = {}
    for api in APIS:
        sent[api], losses = fitted(api, **options)
        dropped[api] = sorted(loss["what"] for loss in losses)
    assert sent["anthropic"] == {
        "temperature": 0.5, "top_p": 1, "top_k": 5, "stop_sequences": ["END"], "output_config": {"effort": "high"},
        "max_tokens": 99,
    }  # fmt: skip
    assert sent["openai"] == {
        "temperature": 0.5, "top_p": 1, "reasoning": {"effort": "high"}, "max_output_tokens": 99,
        "text": {"verbosity": "low"}, "service_tier": "flex",
    }  # fmt: skip
    assert sent["openai-chat"] == {
        "temperature": 0.5, "top_p": 1, "top_k": 5, "seed": 7, "stop": ["END"], "reasoning_effort": "high",
        "max_completion_tokens": 99, "presence_penalty": 0.1, "frequency_penalty": 0.2, "verbosity": "low",
        "service_tier": "flex",
    }  # fmt: skip
    assert sent["google"] == {
        "generationConfig": {
            "temperature": 0.5, "topP": 1, "topK": 5, "seed": 7, "stopSequences": ["END"], "maxOutputTokens": 99,
            "presencePenalty": 0.1, "frequencyPenalty": 0.2, "thinkingConfig": {"thinkingLevel": "HIGH"},
        },
        "serviceTier": "flex",
    }  # fmt: skip
    assert dropped == {
        "anthropic": ["frequency_penalty", "presence_penalty", "seed", "service_tier", "verbosity"],
        "openai": ["frequency_penalty", "presence_penalty", "seed", "stop", "top_k"],
        "openai-chat": [],
        "google": ["verbosity"],
    }


def test_a_model_without_sampling_parameters_gets_none():
    assert fitted("anthropic", "claude-opus-5-5", temperature=1, top_p=1, top_k=1)[0] == {}
    assert fitted("google", "gemini-3.8-flash", temperature=1)[0] == {}
    assert fitted("anthropic", "claude-haiku-4-5", temperature=1)[0] == {"temperature": 1}
    assert fitted("anthropic", "claude-unheard-of", temperature=1)[0] == {"temperature": 1}, "unknown is sent"


def test_a_reasoning_model_of_openai_takes_a_temperature_with_effort_none_only():
    assert fitted("openai", "gpt-5.6-sol", temperature=0.2)[0] == {}
    assert fitted("openai", "gpt-5.6-sol", temperature=0.2, effort="none")[0] == {
        "temperature": 0.2,
        "reasoning": {"effort": "none"},
    }
    assert fitted("openai", "gpt-5.4", temperature=0.2)[0] == {"temperature": 0.2}, "its effort is none by default"
    assert fitted("openai", "gpt-4.1", temperature=0.2)[0] == {"temperature": 0.2}
    assert fitted("openai-chat", "grok-4.7", temperature=0.2)[0] == {"temperature": 0.2}, "xAI takes it"


@pytest.mark.parametrize("api, model, wanted, taken, sent", [
    ("openai", "gpt-5.6-sol", "high", "high", {"reasoning": {"effort": "high"}}),
    ("openai", "gpt-5.6-sol", "minimal", "none", {"reasoning": {"effort": "none"}}),
    ("openai", "gpt-5.5-pro", "low", "medium", {"reasoning": {"effort": "medium"}}),
    ("openai-chat", "grok-4.7", "max", "max", {"reasoning_effort": "max"}),
    ("anthropic", "claude-opus-5-5", "minimal", "low", {"output_config": {"effort": "low"}}),
    ("anthropic", "claude-opus-5-5", "none", "low", {"output_config": {"effort": "low"}}),
    ("anthropic", "claude-haiku-5-5", "none", "none", {"thinking": {"type": "disabled"}}),
    ("anthropic", "claude-opus-5-5", "max", "max", {"output_config": {"effort": "max"}}),
    ("google", "gemini-4-argon", "max", "xhigh", {"thinkingLevel": "XHIGH"}),
    ("google", "gemini-2.5-flash", "medium", "medium", {"thinkingBudget": 8192}),
    ("google", "gemini-2.5-flash", "none", "none", {"thinkingBudget": 0}),
    ("google", "gemini-2.5-pro", "none", "minimal", {"thinkingBudget": 1024}),
])  # fmt: skip
def test_an_effort_that_a_model_lacks_is_the_nearest_one_below_or_else_above(api, model, wanted, taken, sent):
    fields, losses = fitted(api, model, effort=wanted)
    assert fields == ({"generationConfig": {"thinkingConfig": sent}} if api == "google" else sent)
    why = f"the model has no {wanted}; {taken} is the nearest"
    assert losses == ([] if taken == wanted else [{"what": "effort", "action": "downgraded", "why": why}])


def test_an_answer_is_never_asked_to_be_longer_than_the_model_can():
    assert fitted("anthropic", "claude-opus-5-5", max_tokens=10**6)[0] == {"max_tokens": 128_000}
    assert fitted("anthropic", "claude-unheard-of", max_tokens=10**6) == ({"max_tokens": 10**6}, [])
    assert fitted("openai", max_tokens=3)[0] == {"max_output_tokens": 16}


def test_what_is_no_option_is_passed_on_to_compatible_servers_and_refused_elsewhere():
    assert fitted("openai-chat", repetition_penalty=1.1, user="42") == ({"repetition_penalty": 1.1, "user": "42"}, [])
    with pytest.raises(Usage, match=r"^option temprature: google has no such option; did you mean temperature\?$"):
        fitted("google", temprature=1)


@pytest.mark.parametrize("text, value", [
    ("0.5", 0.5), ("7", 7), ("true", True), ("null", None), ('["a", "b"]', ["a", "b"]), ("high", "high"), ("", ""),
    ('"7"', "7"), ("NaN", "NaN"), ("007", "007"),
])  # fmt: skip
def test_a_value_is_what_it_reads_as(text, value):
    assert models.value(text) == value


# -- mllm models ------------------------------------------------------------------------------------------------------

PRICES = {
    "sample_spec": {"mode": "chat"},
    "gpt-7": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1e-06, "output_cost_per_token": 5e-06,
              "supports_vision": True},
    "somebody/else": {"litellm_provider": "somebody", "mode": "chat", "input_cost_per_token": 1, "output_cost_per_token": 1},
}  # fmt: skip


def test_models_lists_one_a_line_and_unknown_is_null(sh, work):
    (work / "prices.json").write_bytes(orjson.dumps(PRICES))
    ran = sh("mllm models --refresh prices.json && mllm models gpt")
    first, *lines = ran.out.splitlines()
    assert re.fullmatch(r"1 models of \d{4}-\d\d-\d\d, now in .*/home/.local/share/mllm-pipe/models.json", first)
    assert (ran.status, ran.err) == (0, "")
    assert [orjson.loads(line) for line in lines] == [{
        "provider": "openai", "model": "gpt-7", "window": None, "output_limit": None, "input_per_mtok_usd": 1.0,
        "output_per_mtok_usd": 5.0, "cache_read_per_mtok_usd": None, "cache_write_per_mtok_usd": None,
        "cache_write_1h_per_mtok_usd": None, "dearer_above_tokens": [], "tiers": [], "supports": {"vision": True},
        "efforts": None, "deprecation_date": None,
    }]  # fmt: skip


def test_models_as_a_table_says_unknown(sh, work):
    (work / "prices.json").write_bytes(orjson.dumps(PRICES))
    assert sh("mllm models --refresh prices.json >&2; mllm models --format table").out == (
        "provider  model   window   answer  in $/M  out $/M  cached $/M  can\n"
        "openai    gpt-7  unknown  unknown       1        5     unknown  vision\n"
    )


def test_a_model_of_any_name_is_one_line_of_the_table_and_drives_no_terminal(sh, work):
    model = PRICES["gpt-7"] | {"litellm_provider": "openai"}
    (work / "prices.json").write_bytes(orjson.dumps({"a\x1b[31mb\nc": model}))
    assert sh("mllm models --refresh prices.json >&2; mllm models --format table").out == (
        "provider  model            window   answer  in $/M  out $/M  cached $/M  can\n"
        "openai    a\\u001b[31mb c  unknown  unknown       1        5     unknown  vision\n"
    )


def test_models_takes_a_part_of_a_name_or_a_pattern(sh):
    def names(arguments):
        return [row["model"] for row in sh(f"mllm models {arguments}").records]

    assert names("OPUS-5") == ["claude-opus-5", "claude-opus-5-5"] == names("'claude-opus-5*'")
    assert names("'claude-opus-?' --provider claude") == ["claude-opus-5"]
    assert sh("mllm models claude-opsu-5") == (
        66, "", "mllm: no model is called claude-opsu-5; did you mean claude-opus-5?\n")  # fmt: skip
    assert sh("mllm models --provider opnai").err.startswith("mllm: --provider opnai: unknown; did you mean openai?; known:")


def test_models_date_says_of_when_and_whom(sh):
    assert sh("mllm models --date").out == "2026-10-21  litellm 1.106.2  shipped\n"


def test_a_table_that_is_none_replaces_nothing(sh, work):
    (work / "prices.json").write_bytes(orjson.dumps(PRICES))
    (work / "none.json").write_text('{"a": 1}')
    ran = sh("mllm models --refresh prices.json; mllm models --refresh none.json; mllm models | wc -l")
    assert ran.out.endswith("\n1\n") and ran.err == "mllm: none.json is neither litellm's price table nor one of ours\n"
    assert sh("mllm models --refresh nowhere.json") == (66, "", "mllm: nowhere.json: No such file or directory\n")
    assert sh("mllm models --refresh prices.json gpt").status == 2


def test_a_damaged_table_of_the_users_is_told_of_and_not_used(sh, home):
    folder = home / ".local" / "share" / "mllm-pipe"
    folder.mkdir(parents=True)
    (folder / "models.json").write_text('{"models": {}}')
    ran = sh("mllm models --date")
    assert ran.out == "2026-10-21  litellm 1.106.2  shipped\n"
    assert ran.err == (
        f"mllm: {folder}/models.json is no table of models: date is no text; the shipped table is used, "
        "mllm models --refresh makes a new one\n"
    )


@pytest.fixture
def site():
    """A web server: /table has one, /moved leads there, /big has no end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_response({"/table": 200, "/big": 200, "/moved": 302}.get(self.path, 404))
            self.send_header("location", "/table")
            self.end_headers()
            try:
                for _ in range(1 if self.path == "/table" else 100 if self.path == "/big" else 0):
                    self.wfile.write(orjson.dumps(PRICES) if self.path == "/table" else bytes(1 << 20))
            except OSError:
                pass

        def log_message(self, *_):
            pass

    heard = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", heard
        server.shutdown()


def test_a_table_comes_by_https_whole_and_from_where_it_was_asked(sh, site):
    url, heard = site
    assert sh(f"mllm models --refresh {url}/table && mllm models").out.count("\n") == 2
    assert heard == ["/table"]
    moved = sh(f"mllm models --refresh {url}/moved")
    assert (moved.status, heard) == (3, ["/table", "/moved"])
    assert moved.err == (
        f"mllm: {url}/moved: 302 redirected to another place; redirects are not followed, correct the base URL\n")  # fmt: skip
    assert sh(f"mllm models --refresh {url}/big") == (2, "", f"mllm: {url}/big is larger than 32 MiB\n")
    assert sh(f"mllm models --refresh {url}/none").status == 3
    plain = sh("mllm models --refresh http://example.invalid/table")
    assert (plain.status, plain.err.count("\n")) == (2, 1) and "say https" in plain.err
