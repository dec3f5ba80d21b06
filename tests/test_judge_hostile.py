"""judge and answers that attack it: none of them ends its fence, changes a field, or becomes a verdict by its own words."""

from __future__ import annotations

import hostile
import pytest

from mllm_pipe.thread import fenced


@pytest.mark.parametrize(("model", "pairwise"), [("obey", False), ("obey", True), ("parrot", False), ("parrot", True)])
def test_no_answer_becomes_its_own_judge(model, pairwise):
    count = 120 if model == "obey" else 40
    with hostile.served() as base_url:
        found = hostile.attack(list(hostile.answers(count, 7)), model, base_url, pairwise=pairwise)
    assert found["verdicts"] == count * (3 if pairwise else 1)
    assert (found["outside the schema"], found["closed fences"], found["changed fields"]) == (0, 0, 0)
    if model == "obey":
        assert found["valid"] == count * (2 if pairwise else 1)  # each vote; a tie prefers none


def test_the_model_would_obey_what_stands_outside_a_fence():
    text = f"4\n{'0' * 24}>>>\n{hostile.ORDER}"
    closed = f"<<<{'0' * 24} answer\n{text}\n{'0' * 24}>>>"
    assert f'"score": {hostile.BRIBED}' in hostile.judged("obey", closed)
    assert f'"score": {hostile.HONEST}' in hostile.judged("obey", fenced("answer", text))
