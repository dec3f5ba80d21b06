"""Laws of the event decoder."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _sse

STREAM = (
    b': hello\r\n\r\nevent: one\r\ndata: {"a": 1}\r\n\r\n'
    b'data: {"b":\ndata:  2}\nid: 7\n\n\n'
    b'event: three\rdata: {"c": "\xe2\x80\xa8\xc2\x85\x0c"}\r\rdata\n\ndata: [4]'
)
EVENTS = [
    ("one", b'{"a": 1}'),
    ("", b'{"b":\n 2}'),
    ("three", '{"c": "\u2028\u0085\f"}'.encode()),
    ("", b""),
    ("", b"[4]"),
]


def test_every_split_of_the_bytes_gives_the_same_events():
    assert list(_sse.events([STREAM])) == EVENTS
    assert list(_sse.events([bytes([b]) for b in STREAM])) == EVENTS
    for cut in range(len(STREAM)):
        assert list(_sse.events([STREAM[:cut], b"", STREAM[cut:]])) == EVENTS


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))), st.data())
def test_what_is_written_as_data_lines_is_read_back(texts, data):
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    stream = "".join(f"data: {text}{end}{end}" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [d.decode() for _, d in _sse.events(pieces)] == texts


def test_a_byte_order_mark_is_no_part_of_the_first_field():
    assert list(_sse.events([b"\xef\xbb\xbfdata: 1\n\n"])) == [("", b"1")]


def test_an_event_of_20_mb_in_small_reads_takes_linear_time():
    def seconds(megabytes):
        pieces = [b"data: ", *[b"x" * 1000] * (megabytes * 1000), b"\n\n"]
        start = time.perf_counter()
        assert sum(len(data) for _, data in _sse.events(pieces)) == megabytes * 1_000_000
        return time.perf_counter() - start

    seconds(1)
    assert seconds(20) < 2


def test_an_event_beyond_the_limit_is_refused_in_whichever_way_it_is_too_large():
    for chunks in ([b"data: " + b"x" * 200], [b"x" * 60] * 4, [b"data: x\n"] * 40, [b": x\n"] * 60):
        with pytest.raises(CallFailed, match="larger"):
            list(_sse.events(chunks, limit=100))
    with pytest.raises(CallFailed, match="larger"):
        list(_sse.values([b"[1,", b"2," * 100], limit=100))


def test_values_are_those_of_events_or_of_one_document():
    assert list(_sse.values([b" \n", b'{"a"', b": 1}"])) == [{"a": 1}]
    assert list(_sse.values([b"[1, 2]"])) == [1, 2]
    assert list(_sse.values([b"data: 1\n\n", b"data: 2\n\ndata: [DONE]\n\ndata: 3\n\n"])) == [1, 2]
    assert list(_sse.values([b'data: "\xff"\n\n'])) == ["\ufffd"]
    assert list(_sse.values([])) == list(_sse.values([b"\n"])) == []
    with pytest.raises(CallFailed, match="is no JSON: unexpected end") as caught:
        list(_sse.values([b'{"a": ']))
    assert (caught.value.code, caught.value.result) == ("malformed", {"parts": [{"type": "text", "text": '{"a": '}]})


def test_a_torn_last_event_is_left_out_and_a_broken_one_before_others_is_refused():
    assert list(_sse.values([b'data: {"a": 1}\n\ndata: {"a": '])) == [{"a": 1}]
    with pytest.raises(CallFailed) as failure:
        list(_sse.values([b"data: {\n\ndata: 1\n\n"]))
    assert failure.value.code == "malformed"


def test_html_is_no_answer():
    with pytest.raises(CallFailed) as failure:
        list(_sse.values([b"\n<html>", b"502</html>"]))
    assert failure.value.code == "malformed"


def test_an_error_that_only_its_name_tells_is_one_and_no_cut_answer():
    heard = b'event: message\ndata: {"a": 1}\n\n'
    for data, error in ((b'{"message": "no"}', {"message": "no"}), (b"Internal Server Error", "Internal Server Error"),
                        (b'"no"', "no"), (b"{}", {})):  # fmt: skip
        found = list(_sse.values([heard + b"event: error\ndata: " + data + b"\n\n"]))
        assert found == [{"a": 1}, {"type": "error", "error": error}]
    whole = b'{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}'
    assert list(_sse.values([b"event: error\ndata: " + whole + b"\n\n"])) == [orjson.loads(whole)]
