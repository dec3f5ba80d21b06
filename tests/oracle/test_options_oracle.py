"""Options are legal: whatever a user says with -o, the vendors' own request types accept what becomes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

for needed in ("anthropic", "openai", "google.genai"):
    pytest.importorskip(needed)

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from recorded import asked  # noqa: E402
from test_models import ROWS, sound  # noqa: E402
from test_oracle_requests import DIALECTS  # noqa: E402

from mllm_pipe.models import SAMPLING  # noqa: E402
from mllm_pipe.runtimes import anthropic  # noqa: E402

VENDORS = {"anthropic": "anthropic", "openai": "openai", "chat": "openai", "google": "google"}


@pytest.mark.parametrize("name", DIALECTS)
@settings(deadline=None, max_examples=200)
@given(options=sound, data=st.data())
def test_every_option_of_every_model_is_sent_in_a_legal_form(name, options, data):
    module, check, _, _ = DIALECTS[name]
    model = data.draw(st.sampled_from([model for provider, model in ROWS if provider == VENDORS[name]]))
    target = {"runtime": name, "kind": name, "model": model}
    body, _ = module.request(target, asked(("user", "x"), options=options))
    tier = body.pop("serviceTier", "standard")  # the SDK's type of the whole body is not public, only of its parts
    assert name != "google" or tier in ("standard", "flex", "priority")
    if name == "anthropic":  # gone from the types with version 2026-10-21 of the API; we speak 2023-06-01, which has them
        assert anthropic.VERSION == "2023-06-01"
        body = {field: value for field, value in body.items() if field not in SAMPLING}
    check(body)
