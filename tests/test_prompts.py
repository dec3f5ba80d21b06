"""dispatch -t: prompts of mllm.toml, and what stands in their {placeholders}."""

from __future__ import annotations

from pathlib import Path

import pytest

PROMPTS = """
[prompts.translate]
text = '''Translate into {language}: {prompt} {"keep": {"braces": "{{language}}"}}'''
system = "You know {language}."
[prompts.brief]
system = "Be brief."
[prompts.plain]
text = "Say something."
[prompts.empty]
description = "nothing yet"
"""


@pytest.fixture
def sh(sh, work: Path):
    """The shell, with the prompts above."""
    (work / "mllm.toml").write_text(PROMPTS)
    return lambda line, **more: sh(line, **{"MLLM_CONFIG": "mllm.toml"} | more)


def test_placeholders_are_filled_once_and_other_braces_are_what_they_are(sh):
    line = "dispatch --to exec:cat --new -t translate -p language 'French {prompt}' 'Say {language} {x}' --text"
    ran = sh(line)
    assert (ran.status, ran.err) == (0, "")
    assert 'Translate into French {prompt}: Say {language} {x} {"keep": {"braces": "{language}"}}' in ran.out
    assert "You know French {prompt}." in ran.out


def test_a_prompt_may_be_a_system_text_alone(sh):
    ran = sh("dispatch --to echo --new -t brief hello -s 'And kind.' | jq -r 'select(.op).system, select(.role == \"user\").content'")
    assert ran.out == "hello\nBe brief.\n\nAnd kind.\n"
    assert sh("dispatch --to echo --new -t plain --text").out == "Say something.\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("-t translat x", "-t translat: no prompt of that name; did you mean translate?"),
        ("-t zzz x", "-t zzz: no prompt of that name; there are translate, brief, plain, empty"),
        ("-t translate", "mllm.toml:2: prompts.translate wants {language}, {prompt}; say -p language VALUE, a PROMPT"),
        ("-t translate -p lang x hi", "mllm.toml:2: prompts.translate has no {lang}; did you mean language?; it has {language}, {prompt}"),
        ("-t translate -p language a -p language b hi", "-p language is given twice"),
        ("-t translate -p language a -p prompt b hi", "PROMPT is the value of {prompt}; say it once"),
        ("-t plain hi", "mllm.toml:7: prompts.plain has no {prompt}; it has none"),
        ("-t empty hi", "mllm.toml:9: prompts.empty has neither text nor system"),
        ("-p language x hi", "-p is the value of a placeholder of -t NAME"),
    ],
)  # fmt: skip
def test_what_is_missing_or_unknown_is_named_before_anything_is_sent(sh, home, flags, said):
    assert sh(f"dispatch --to echo --new {flags}") == (2, "", f"dispatch: {said}\n")
    assert not (home / ".local").exists()
