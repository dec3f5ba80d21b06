"""Laws of an answer over plain http: what h11 reads of the same bytes is read, whole or a byte at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import h11
import pytest

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _clock, _direct, _http, _socket

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FIVE = b"Content-Length: 5\r\n\r\nhello"
ANSWERS = {
    "whole": OK + FIVE,
    "with bytes behind it": OK + FIVE + OK,
    "cut off": OK + b"Content-Length: 9\r\n\r\nhello",
    "to the end of the connection": OK + b"\r\nhello",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "lines without CR": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "after a 100": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + FIVE,
    "after two hints": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 2 + OK + b"\r\nhello",
    "a 100 and no more": b"HTTP/1.1 100 Continue\r\n\r\n",
    "a 204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a 304 with a length": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n",
    "empty": OK + b"Content-Length: 0\r\n\r\n",
    "chunks": CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    "chunks with trailers": CHUNKED + b"3\r\nabc\r\n0\r\nX-T: 1\r\nContent-Length: 7\r\n\r\n",
    "chunks with endless trailers": CHUNKED + b"3\r\nabc\r\n0\r\nX-T: " + b"1" * 300_000,
    "chunks with extensions": CHUNKED + b'3;a="b c"\r\nabc\r\n0;d\r\n\r\n',
    "chunks with blanks": CHUNKED + b"3  \r\nabc\r\n0\r\n\r\n",
    "chunks and a length": OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "a cut chunk": CHUNKED + b"3\r\nabc\r\n5\r\nde",
    "chunks without an end": CHUNKED + b"3\r\nabc\r\n",
    "no size of a chunk": CHUNKED + b"3\r\nabc\r\nzz\r\n",
    "a chunk beyond counting": CHUNKED + b"fffffffffffffffffffff\r\nabc\r\n",
    "two lengths": OK + b"Content-Length: 6\r\n" + FIVE,
    "less than nothing": OK + b"Content-Length: -5\r\n\r\nhello",
    "a length in words": OK + b"Content-Length: five\r\n\r\nhello",
    "a length beyond counting": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "a header without value": OK + b"X-Empty:\r\nY: \r\n" + FIVE,
    "a header twice": OK + b"X: a\r\nx:  b \t\r\n" + FIVE,
    "a header in Latin-1": OK + b"X: \xe4\r\n" + FIVE,
    "a header with NUL": OK + b"X: a\0b\r\n" + FIVE,
    "a header without colon": OK + b"X y\r\n" + FIVE,
    "a blank before the colon": OK + b"X : y\r\n" + FIVE,
    "an upgrade that is no change": OK + b"Upgrade: h2c\r\n" + FIVE,
    "no reason": b"HTTP/1.1 200\r\n" + FIVE,
    "no status": b"HTTP/1.1 2000 X\r\n" + FIVE,
    "a head beyond the limit": OK + b"X: " + b"y" * 300_000 + b"\r\n" + FIVE,
    "half a head": OK + b"Conte",
    "no HTTP": b"SSH-2.0-OpenSSH_9\r\n",
    "a page": b"<html>hello</html>",
    "nothing": b"",
}
STRICTER = {  # than h11, as Node is: nobody can say how long such an answer is
    "a length twice": OK + b"Content-Length: 5\r\n" + FIVE,
    "a length that is a list": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "a header on two lines": OK + b"X: a\r\n b\r\n" + FIVE,
}


class Io:
    def left(self):
        return 60.0


def ours(data, step):
    """(status, headers, body, "" or "cut") of the bytes, as they come over a socket; None for no answer."""
    near, far = socket.socketpair()

    def send():
        with far:
            for start in range(0, len(data), step):
                try:
                    far.sendall(data[start : start + step])
                except OSError:
                    return  # it was closed, having seen enough

    sending = threading.Thread(target=send)
    sending.start()
    clock = _clock.Clock(Io(), 60.0, 60.0)
    clock.sending()
    answer = _direct.Parsed(_socket.Connection(near), clock)
    heard = []
    try:
        answer.take_head()
        heard = [answer.status, answer.headers, b""]
        for piece in answer.body():
            heard[2] += piece
        return [*heard, ""]
    except _clock.Broken:
        return [*heard, "cut"] if heard else None
    finally:
        answer.close()
        sending.join()


def h11s(data):
    connection, rest, heard = h11.Connection(h11.CLIENT, 100 << 10), data, []
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x"), ("connection", "close")]))
    connection.send(h11.EndOfMessage())
    try:
        while (event := connection.next_event()) is not h11.PAUSED:
            if event is h11.NEED_DATA:
                connection.receive_data(rest[:4096])
                rest = rest[4096:]
            elif type(event) is h11.Response:
                heard = [event.status_code, {}, b""]
                for name, value in event.headers:
                    old = heard[1].get(name.decode())
                    heard[1][name.decode()] = (f"{old}, " if old else "") + value.decode("latin-1")
            elif type(event) is h11.Data:
                heard[2] += event.data
            elif type(event) in (h11.EndOfMessage, h11.ConnectionClosed):
                break
        return [*heard, ""] if heard else None
    except h11.RemoteProtocolError:
        return [*heard, "cut"] if heard else None


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_as_h11_reads_it(name):
    data = ANSWERS[name]
    assert ours(data, 1 << 20) == h11s(data)
    assert ours(data, 1) == ours(data, 1 << 20) if len(data) < 1000 else ours(data, 1000) == ours(data, 1 << 20)


@pytest.mark.parametrize("name", STRICTER)
def test_an_answer_of_which_nobody_can_say_how_long_it_is_is_none(name):
    assert (ours(STRICTER[name], 1 << 20), ours(STRICTER[name], 1)) == (None, None)


def test_what_a_switch_to_another_protocol_says_is_no_body():
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc"
    assert ours(switched, 1 << 20) == [101, {"upgrade": "x", "connection": "upgrade"}, b"", ""]


def test_a_request_that_is_refused_before_it_is_whole_is_told_why():
    """As one that is too large: the server answers, closes, and lets the rest of it fail."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = listening.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 20):
                pass

    answering = threading.Thread(target=answer)
    answering.start()
    with listening, pytest.raises(CallFailed) as caught:
        list(_http.post(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", {}, b"x" * (8 << 20), Io()))
    answering.join()
    assert (caught.value.http_status, caught.value.billed) == (413, "no")


@pytest.mark.parametrize("scheme, loaded", [("http", "[]"), ("https", "['ssl', 'certifi']")])
def test_what_goes_straight_to_its_server_loads_no_more_than_it_needs(scheme, loaded):
    asks = """
import sys
from mllm_pipe.errors import CallFailed
from mllm_pipe.calling.span import Io
from mllm_pipe.runtimes import _http
try:
    list(_http.post("SCHEME://127.0.0.1:1/v1", {}, b"", Io(5)))
except CallFailed as failure:
    print(failure, [name for name in ("httpx", "httpcore", "h11", "ssl", "certifi", "anyio") if name in sys.modules])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    code = asks.replace("SCHEME", scheme)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (ran.stdout, ran.stderr) == (f"127.0.0.1: Connection refused {loaded}\n", "")
