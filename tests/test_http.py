"""Laws of the one POST: against raw sockets on loopback, since most of what goes wrong is no HTTP."""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import os
import socket
import ssl
import struct
import subprocess
import threading
import time

import orjson
import pytest
from loopback.unread import await_read

from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import _clock, _endpoint, _faults, _http, _socket

KEY = "sk-test-1234567890abcdef"


class Io:
    def __init__(self, seconds=60.0):
        self.ends = time.monotonic() + seconds

    def text(self, piece):
        raise AssertionError("the network reports no text")

    def left(self):
        left = self.ends - time.monotonic()
        if left <= 0:
            raise CallFailed("timeout", "the deadline of the call")
        return left


@contextlib.contextmanager
def server(answer, family=socket.AF_INET, host="127.0.0.1", tls=None):
    """A socket that gives each connection to answer(connection, request bytes); yields its base URL and what it got."""
    got, closing, open_ones = [], threading.Event(), []
    listening = socket.create_server((host, 0), family=family)
    listening.settimeout(0.05)

    def handle(connection):
        open_ones.append(connection)
        with contextlib.suppress(OSError), tls.wrap_socket(connection, True) if tls else connection as connection:
            connection.settimeout(60)
            while not closing.is_set():
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    request += piece
                head, _, body = request.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                while len(body) < length:
                    body += connection.recv(65536)
                got.append((head, body))
                if not answer(connection, closing):
                    return

    def accept():
        threads = []
        while not closing.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listening.accept()
                threads.append(threading.Thread(target=handle, args=(connection,)))
                threads[-1].start()
        for connection in open_ones:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    accepting = threading.Thread(target=accept)
    accepting.start()
    name = f"[{host}]" if ":" in host else host
    try:
        yield f"http{'s' * bool(tls)}://{name}:{listening.getsockname()[1]}", got
    finally:
        closing.set()
        accepting.join()
        listening.close()


def whole(body, status="200 OK", kind="text/event-stream", more=""):
    """answer() that sends one whole reply and keeps the connection."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode()

    def answer(connection, _):
        connection.sendall(head + body)
        return True

    return answer


def pieces(*parts, head=b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", wait=0.0, then=None):
    """answer() that sends parts, `wait` seconds after one another, and then ends, as `then` says."""

    def answer(connection, closing):
        for part in (head, *parts):
            connection.sendall(part)
            closing.wait(wait)
        if then:
            then(connection, closing)

    return answer


def reset(connection, closing):
    await_read(connection, closing)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(_, closing):
    closing.wait(10)


def post(url, io=None, body=b"{}", **options):
    headers = options.pop("headers", {"x-api-key": KEY})
    return b"".join(_http.post(url + "/v1", headers, body, io or Io(), secrets=[KEY], **options))


def failure(url, io=None, **options):
    with pytest.raises(CallFailed) as caught:
        post(url, io, **options)
    error = caught.value
    seen = error
    while seen is not None:
        assert KEY not in str(seen) and KEY not in repr(seen)
        seen = seen.__cause__ or seen.__context__
    return error


def test_the_body_goes_out_and_the_answer_comes_back():
    with server(whole(b"data: 1\n\n")) as (url, got):
        assert post(url, body=b'{"a": 1}') == b"data: 1\n\n"
        head, body = got[0]
        assert body == b'{"a": 1}' and b"x-api-key: " + KEY.encode() in head


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a certificate for 127.0.0.1 and its key."""
    made = tmp_path_factory.mktemp("tls") / "certificate.pem"
    words = ["-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", made, "-out", f"{made}.crt"]
    subprocess.run(["openssl", "req", *words], check=True, capture_output=True)
    with open(made, "ab") as file, open(f"{made}.crt", "rb") as more:
        file.write(more.read())
    return made


CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED += b"%x\r\n%s\r\n0\r\n\r\n" % (len(CHUNK), CHUNK)


def test_over_https_a_connection_is_used_again_while_it_has_not_rested_for_long(sh, work, certificate):
    came = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    def answer(connection, _):
        came.append((connection.getpeername()[1], time.monotonic()))
        connection.sendall(CHUNKED)
        return True

    with server(answer, tls=tls) as (url, _):
        asked = '{"v":1,"type":"message","thread":"%s","id":"m","role":"user","content":"q"}\\n'
        (work / "two").write_text("until [ \"$(grep -c '\"role\":\"assistant\"' out)\" = 2 ]; do sleep 0.1; done\n")
        lines = (f"printf '{asked}{asked}{asked}' A B C; timeout 60 sh two; "
                 f"sleep {_socket.KEEP_S + 0.5}; printf '{asked}' D")  # fmt: skip
        line = f": > out; ({lines}) | dispatch -q --grouped --to openai-chat/m --base-url {url} > out; cat out"
        for _ in range(5):
            came.clear()
            ran = sh(line, SSL_CERT_FILE=str(certificate))
            assert (ran.status, ran.err, ran.kinds().count("assistant")) == (0, "", 4)
            (a, at_a), (b, at_b), (c, at_c), (d, at_d) = came
            assert a != c  # C is asked when D is there
            if max(at_b - at_a, at_d - at_c) < _socket.KEEP_S:
                break  # else the machine was too slow to ask again before the connection had rested for too long
    assert (a, c) == (b, d)


def test_a_server_that_closes_after_each_answer_and_does_not_say_so_loses_no_call():
    """llama-server is one. A connection that is used again meets the end of it: before, while or after it sends."""

    def answer(connection, closing):
        connection.sendall(CHUNKED)
        closing.wait(0.002)
        return False

    with server(answer) as (url, got):
        for _ in range(50):
            answer_bytes = _http.post(url, {}, b"{}", Io())
            assert next(answer_bytes) == CHUNK
            answer_bytes.close()  # the end of the answer was not asked for
    assert len(got) == 50


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_loopback_never_goes_through_a_proxy(monkeypatch, family, host):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with server(whole(b"ok"), family, host) as (url, _):
        assert post(url) == b"ok"
        assert post(url.replace("127.0.0.1", "localhost")) == b"ok"


def test_other_hosts_go_through_the_proxy_of_the_environment(monkeypatch):
    with server(whole(b"from the proxy")) as (url, got):
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert post("http://models.example") == b"from the proxy"
        assert got[0][0].startswith(b"POST http://models.example/v1 ")
        monkeypatch.setenv("no_proxy", "models.example")
        assert _endpoint.proxy("http", "models.example") is None
        monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:9")
        with pytest.raises(Usage, match="pip install socksio"):
            post("https://other.example")


def test_loopback_is_told_from_what_only_looks_like_it():
    assert all(map(_endpoint.loopback, ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1", "[::1]"]))
    assert not any(map(_endpoint.loopback, ["127.0.0.1.example", "localhost.example", "10.0.0.1", "::2", ""]))


def test_a_refused_or_unknown_host_was_not_billed():
    with socket.socket() as deaf:  # it has the port, so that nobody else gets it, and does not listen
        deaf.bind(("127.0.0.1", 0))
        for url in (f"http://127.0.0.1:{deaf.getsockname()[1]}", "http://nowhere.invalid"):
            error = failure(url)
            assert (error.code, error.billed, error.retryable) == ("network", "no", True)


def test_silence_after_the_request_may_be_billed():
    with server(lambda c, closing: silent(c, closing)) as (url, _):
        error = failure(url, first_byte_s=0.3)
    assert (error.code, error.billed) == ("timeout", "unknown")


def test_an_answer_that_stands_still_ends_at_the_idle_limit():
    with server(pieces(b"data: 1\n\n", then=silent)) as (url, _):
        error = failure(url, idle_s=0.3)  # the server ends it after 10 s
    assert (error.code, error.billed) == ("timeout", "unknown")


def soon(most, measure):
    """True if what `measure` times takes no longer, once at least: the machine may stand still meanwhile, not each time."""
    return any(measure() < most for _ in range(5))


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", b""])
def test_an_answer_that_trickles_ends_at_the_deadline(head):
    trickle = [b"HTTP/1.1 200 OK\r\n"] + [b"x: y\r\n"] * 100 if not head else [b"."] * 100

    def measure():
        with server(pieces(*trickle, head=head, wait=0.1)) as (url, _):
            started = time.monotonic()
            error = failure(url, Io(0.7))
        took = time.monotonic() - started
        assert error.code == "timeout" and took > 0.6
        return took

    assert soon(1.2, measure)


def test_a_clock_that_runs_out_elsewhere_ends_a_call_that_waits():
    io = Io(60)
    with server(lambda c, closing: silent(c, closing)) as (url, _):
        threading.Timer(0.2, lambda: setattr(io, "ends", 0)).start()
        assert failure(url, io).code == "timeout"  # the server ends it after 10 s, and the clock ran for 60


def test_a_reader_that_takes_nothing_ends_at_the_deadline():
    body = b"x" * (64 << 20)

    def measure():
        with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:
            started = time.monotonic()
            error = failure(f"http://127.0.0.1:{deaf.getsockname()[1]}", Io(0.5), body=body)
        assert (error.code, error.billed) == ("timeout", "unknown")
        return time.monotonic() - started

    assert soon(2, measure)


def test_a_connection_closed_before_the_answer_is_of_unknown_bill():
    for then in (None, reset):
        with server(pieces(head=b"", then=then)) as (url, _):
            error = failure(url)
        assert (error.code, error.billed, error.retryable) == ("network", "unknown", False)


@pytest.mark.parametrize("head", [
    b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n40\r\n",
])  # fmt: skip
def test_a_connection_closed_within_the_answer_is_a_cut(head):
    for then in (None, reset):
        with server(pieces(b"data: 1\n\n", head=head, then=then)) as (url, _):
            error = failure(url)
        assert (error.code, error.billed) == ("cut", "unknown")


def test_a_redirect_is_not_followed():
    with (
        server(whole(b"stolen")) as (other, got),
        server(whole(b"", "307 Temporary Redirect", more=f"location: {other}/v1?key={KEY}\r\n")) as (url, _),
    ):
        error = failure(url)
        assert got == [] and error.code == "bad_request" and error.http_status == 307 and not error.retryable


STATUSES = [
    (400, "bad_request", "no", False),
    (401, "auth", "no", False),
    (402, "billing", "no", False),
    (403, "permission", "no", False),
    (404, "bad_model", "no", False),
    (408, "timeout", "unknown", False),
    (413, "too_large", "no", False),
    (418, "bad_request", "no", False),
    (429, "rate_limit", "no", True),
    (500, "server", "no", True),
    (502, "server", "no", True),
    (503, "overloaded", "no", True),
    (504, "timeout", "unknown", False),
    (529, "overloaded", "no", True),
]


@pytest.mark.parametrize("status, code, billed, retryable", STATUSES)
def test_a_status_says_what_happened_and_whether_it_is_billed(status, code, billed, retryable):
    body = b'{"error": {"message": "loopback says no", "type": "invalid_request_error"}}'
    with server(whole(body, f"{status} X", "application/json", "retry-after: 2\r\n")) as (url, _):
        error = failure(url)
    assert (error.code, error.billed, error.retryable, error.http_status) == (code, billed, retryable, status)
    assert str(error) == f"{status} loopback says no"
    assert error.retry_after_s == (2.0 if retryable else None)


@pytest.mark.parametrize("body, said", [
    (b'{"error": {"message": "a"}}', "401 a"),
    (b'{"error": "b"}', "401 b"),
    (b'{"detail": "c"}', "401 c"),
    (b'{"detail": [{"msg": "d"}]}', "401 d"),
    (b'{"message": "e"}', "401 e"),
    (b'{"object": "error", "message": "f"}', "401 f"),
    (b'[{"error": {"message": "g"}}]', "401 g"),
    (b"<html><title>h</title>", "401 h"),
    (b"plain\x1b[2J\r\n text\xff", "401 plain [2J text\ufffd"),
    (b"", "401"),
    (b"[]", "401 []"),
    (b'{"error": {"message": "' + b"x" * 1000 + b'"}}', "401 " + "x" * 293 + "..."),
    (b'{"error": {"message": "wrong key: ' + KEY.encode() + b'"}}', "401 wrong key: ***"),
    (b"x" * 290 + KEY.encode(), "401 " + "x" * 290 + "***"),
])  # fmt: skip
def test_the_vendors_own_words_are_found_and_made_one_clean_line(body, said):
    with server(whole(body, "401 X")) as (url, _):
        assert str(failure(url)) == said


def test_words_of_the_vendor_go_before_the_status():
    for body, code in [
        (b'{"error": {"code": "insufficient_quota", "message": "m"}}', "billing"),
        (b'{"error": {"details": {"error_code": "contract_spend_limit_reached"}, "type": "x"}}', "billing"),
        (b'{"error": {"code": "rate_limit_exceeded"}}', "rate_limit"),
    ]:
        assert _faults.of_reply(429, {}, body).code == code
    for body, code in [
        (b'{"error": {"code": "context_length_exceeded", "type": "invalid_request_error"}}', "too_large"),
        (b'{"error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}}', "too_large"),
        (b'{"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}', "auth"),
        (b'{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}', "bad_request"),
        (b'{"error": {"code": 400, "type": "exceed_context_size_error", "message": "it exceeds"}}', "too_large"),
    ]:
        assert _faults.of_reply(400, {}, body).code == code


@pytest.mark.parametrize("said, code", [
    ("model 'nope' not found", "bad_model"),  # llama-server
    ('model "nope:7b" not found, try pulling it first', "bad_model"),  # Ollama
    ("The model `nope` does not exist.", "bad_model"),  # vLLM, Groq
    ("Invalid model: nope", "bad_model"),  # Mistral
    ("nope/x is not a valid model ID", "bad_model"),  # OpenRouter
    ("Invalid model name passed in model=nope", "bad_model"),  # LiteLLM
    ("the request exceeds the available context size (8192 tokens)", "too_large"),
    ("Item 'rs_1' not found", "bad_request"),
    ("This model does not support temperature", "bad_request"),
    ("no image model input was found", "bad_request"),
])  # fmt: skip
def test_a_400_may_say_in_its_text_that_there_is_no_such_model(said, code):
    body = orjson.dumps({"error": {"message": said, "type": "invalid_request_error", "code": 400}})
    assert _faults.of_reply(400, {}, body).code == code


def test_only_a_wait_of_use_is_taken():
    future = email.utils.formatdate(time.time() + 60, usegmt=True)
    for value, low, high in [("7", 7, 7), ("0.5", 0.5, 0.5), (future, 50, 61)]:
        assert low <= _faults.retry_after({"retry-after": value}) <= high
    assert _faults.retry_after({"retry-after": "9", "retry-after-ms": "1500"}) == 1.5
    past = ["Mon, 01 Jan 2001 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"]
    for value in ["-1", "nan", "inf", "0", "", "soon", *past]:
        assert _faults.retry_after({"retry-after": value}) is None


def test_a_page_of_html_is_no_answer():
    with server(whole(b"<html>hello</html>", kind="text/html; charset=utf-8")) as (url, _):
        assert failure(url).code == "malformed"


def test_a_gzip_bomb_is_bounded():
    bomb = gzip.compress(bytes(300 << 20), 1)
    with server(whole(bomb, more="content-encoding: gzip\r\n")) as (url, _):
        with pytest.raises(CallFailed, match="larger than 256 MiB") as caught:
            for _ in _http.post(url, {}, b"", Io(300)):
                pass
        assert caught.value.code == "malformed"
    with server(whole(b"no gzip", more="content-encoding: gzip\r\n")) as (url, _):
        assert failure(url).code == "malformed"


def test_too_many_headers_are_no_answer():
    with server(whole(b"", more="x: " + "y" * (1 << 20) + "\r\n")) as (url, _):
        assert failure(url).code == "network"


@pytest.mark.parametrize("value", [KEY + "\n", KEY + "\r\nx: y", KEY + "\u00e4", " " + KEY, KEY + "\x00"])
def test_a_header_that_cannot_be_sent_is_refused_and_not_said(value):
    with server(whole(b"")) as (url, got):
        with pytest.raises(Usage) as caught:
            post(url, headers={"x-api-key": value})
        assert KEY not in str(caught.value) and "x-api-key" in str(caught.value) and got == []


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://a b", "http://[::1", "http://x:99999", "http://ä",
                                 "http://a..b", f"http://{'x' * 64}.example"])  # fmt: skip
def test_a_base_url_that_is_none_is_a_matter_of_usage_and_is_shown(url):
    with pytest.raises(Usage) as caught:
        post(url)
    assert str(caught.value) == f"'{url}/v1' is no URL of an API; a base URL looks like https://host/v1"


def test_what_may_be_a_secret_in_a_base_url_is_not_shown():
    with pytest.raises(Usage, match=r"^'ftp://\*\*\*@host/a/v1' is no URL"):
        _http.post(f"ftp://user:{KEY}@host/a/v1?key={KEY}", {}, b"", Io()).send(None)


def test_a_hundred_calls_at_once_have_a_client_each():
    all_here = threading.Barrier(100)

    def answer(connection, closing):
        all_here.wait(60)
        return whole(b"data: 1\n\n")(connection, closing)

    results = []
    with server(answer) as (url, _):
        threads = [threading.Thread(target=lambda: results.append(post(url, Io(120)))) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [b"data: 1\n\n"] * 100


def test_a_socket_that_cannot_be_made_is_no_connection():
    """As where the kernel has no IPv6, or the process no descriptor left: another address may do."""
    with pytest.raises(_clock.Broken, match="Address family not supported"):
        _socket.connected((12345, socket.SOCK_STREAM, 0, "", ("::1", 1)), 1.0)


def test_nothing_heavy_is_imported_before_it_sends():
    import subprocess
    import sys

    code = "import sys, mllm_pipe.runtimes._http; print([m for m in ('httpx', 'httpcore', 'ssl') if m in sys.modules])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_call_that_failed_leaves_no_stream_to_the_collector():
    """An abandoned stream that is collected inside the next call's pool would wait for a lock which that call holds."""
    import gc
    import http.server
    import types

    from mllm_pipe.calling.span import Io
    from mllm_pipe.runtimes import openai_chat

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b'data: {"error":{"message":"no more"}}\n\n' + b": and so on\n" * 1000)

        def log_message(self, *_):
            pass

    turn = {"role": "user", "parts": [{"type": "text", "text": "q"}], "ids": ["q"], "origin": None}
    request = {"system": None, "turns": [turn], "schema": None}
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        gc.collect()  # what tests before this one have left
        gc.disable()
        try:
            with pytest.raises(CallFailed) as caught:
                openai_chat.call({"runtime": "vllm", "model": "m", "base_url": base_url}, request, Io(60))
            streams = [one for one in gc.get_objects() if isinstance(one, types.GeneratorType)]
            left = [one for one in streams if one.__name__ == "post" and one.gi_frame]
        finally:
            gc.enable()
        server.shutdown()
    assert "no more" in str(caught.value) and left == []
