"""Laws of TLS: it is done in memory, so a wait for it has a limit and holds up nobody, and it goes through TLS, too."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import threading

import pytest
from test_http import CHUNK, CHUNKED, server

from mllm_pipe.runtimes import _clock, _socket, _tls

NAME = "other.example"  # no loopback, so that it is asked through a proxy


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a certificate for 127.0.0.1 and NAME, and its key."""
    made = tmp_path_factory.mktemp("tls") / "certificate.pem"
    words = ["-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2", "-subj", f"/CN={NAME}"]
    words += ["-addext", f"subjectAltName=IP:127.0.0.1,DNS:{NAME}", "-keyout", made, "-out", f"{made}.crt"]
    subprocess.run(["openssl", "req", *words], check=True, capture_output=True)
    with open(made, "ab") as file, open(f"{made}.crt", "rb") as more:
        file.write(more.read())
    return made


def serving(certificate):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    return tls


@contextlib.contextmanager
def listening(handle):
    """A port each of whose connections is given to handle(socket), in a thread of its own."""
    socket_ = socket.create_server(("127.0.0.1", 0))
    threads = []

    def one(connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(120)
            handle(connection)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=one, args=(socket_.accept()[0],)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield socket_.getsockname()[1]
    finally:
        socket_.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for thread in threads:
            thread.join()
        socket_.close()


def secured(port, certificate, host=NAME, timeout=60.0):
    where = socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)[0]
    connection = _socket.connected(where, 60.0)
    try:
        return _tls.Secured(connection, ssl.create_default_context(cafile=certificate), host, timeout)
    except _clock.Broken:
        connection.close()
        raise


def read_all(connection, most=1000):
    data = b""
    while piece := connection.read(most, 60):
        data += piece
    return data


@pytest.mark.parametrize("goodbye", [True, False])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_is_sent_comes_back_be_it_large_and_with_or_without_a_goodbye(certificate, version, goodbye):
    data, tls = bytes(range(256)) * (1 << 13), serving(certificate)
    tls.maximum_version = version

    def echo(connection):
        with tls.wrap_socket(connection, True) as secure:
            got = b""
            while len(got) < len(data):
                got += secure.recv(1 << 16)
            secure.sendall(got)
            if goodbye:
                secure.unwrap()

    with listening(echo) as port:
        connection = secured(port, certificate)
        connection.write(data, 60)
        assert read_all(connection) == data
        connection.close()


@pytest.mark.parametrize("host, trusts, why", [("elsewhere.example", True, "Hostname mismatch"), (NAME, False, "self-signed")])
def test_who_is_not_who_it_should_be_is_not_talked_to(certificate, host, trusts, why):
    got = []

    def handle(connection):
        with serving(certificate).wrap_socket(connection, True) as secure:
            got.append(secure.recv(100))

    with listening(handle) as port, pytest.raises(_clock.Broken, match=why):
        secured(port, certificate if trusts else None, host)
    assert not got


def test_a_handshake_has_a_limit(certificate):
    over = threading.Event()
    with listening(lambda connection: over.wait(20)) as port:
        with pytest.raises(_clock.Late):
            secured(port, certificate, timeout=0.2)
        over.set()


def test_a_reader_that_takes_nothing_has_a_limit(certificate):
    over = threading.Event()

    def handle(connection):
        with serving(certificate).wrap_socket(connection, True):
            over.wait(20)

    with listening(handle) as port:
        connection = secured(port, certificate)
        with pytest.raises(_clock.Late):
            connection.write(b"x" * (64 << 20), 0.3)
        over.set()
        connection.close()


def test_what_is_no_tls_is_said_as_that(certificate):
    refuse = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with listening(lambda connection: connection.sendall(refuse)) as port, pytest.raises(_clock.Broken, match="wrong version"):
        secured(port, certificate)


def test_one_that_rests_has_news_when_the_other_side_has_closed_it(certificate):
    close = threading.Event()

    def handle(connection):
        with serving(certificate).wrap_socket(connection, True) as secure:
            secure.sendall(b"word")
            close.wait(20)

    with listening(handle) as port:
        connection = secured(port, certificate)
        assert connection.read(100, 60) == b"word"
        assert not connection.has_news()
        close.set()
        beneath = connection.inner.sock
        beneath.setblocking(True)
        assert beneath.recv(1, socket.MSG_PEEK) in (b"", b"\x15", b"\x17")  # a goodbye, or the end
        assert connection.has_news()
        connection.close()


def test_why_a_request_is_not_read_to_its_end_is_heard(sh, work, certificate):
    why = b'{"error":{"message":"too big"}}'
    refusal = b"HTTP/1.1 413 No\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(why)

    def handle(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else its kernel may keep the words, and drop them
        with serving(certificate).wrap_socket(connection, True) as secure:
            head = b""
            while b"\r\n\r\n" not in head:
                head += secure.recv(1 << 10)
            secure.sendall(refusal + why)

    (work / "long").write_text("a word " * (2 << 20))
    with listening(handle) as port:
        ran = sh(f"thread-append --new @long | dispatch --to openai-chat/m --base-url https://127.0.0.1:{port} > out",
                 SSL_CERT_FILE=str(certificate))  # fmt: skip
    assert ran.status == 3 and "413 too big" in ran.err, ran.err


def test_who_are_asked_the_same_use_their_connections_again(sh, batch, certificate):
    batch(12)
    ports = set()

    def answer(connection, _):
        ports.add(connection.getpeername()[1])
        connection.sendall(CHUNKED)
        return True

    with server(answer, tls=serving(certificate)) as (url, _):
        ran = sh("dispatch -q -j 2 --to openai-chat:a --to openai-chat:b < in | grep -c '\"content\":\"yes\"'",
                 SSL_CERT_FILE=str(certificate), OPENAI_BASE_URL=url, OPENAI_API_KEY="k")  # fmt: skip
    assert ran == (0, "24\n", "") and len(ports) <= 4


OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
SAID = b"content-length: %d\r\n\r\n%s" % (len(CHUNK), CHUNK)


@pytest.mark.parametrize("answers, connections", [
    ([OK + SAID, OK + SAID], 1),
    ([CHUNKED, OK + SAID], 1),
    ([b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 2\r\n\r\n{}", OK + SAID, OK + SAID], 1),
    ([OK + b"connection: close\r\n" + SAID, OK + SAID], 2),
    ([b"HTTP/1.0" + OK[8:] + SAID, OK + SAID], 2),
    ([OK + SAID + OK, OK + SAID], 2),
    ([OK + SAID + b"what is this", OK + SAID], 2),
    ([CHUNKED + b"0\r\n\r\n", OK + SAID], 2),
    ([CHUNKED.replace(b"chunked", b"chunked\r\ncontent-length: 7"), OK + SAID], 2),
])  # fmt: skip
def test_a_connection_is_used_again_after_a_whole_answer_that_nothing_stands_behind(sh, batch, certificate, answers, connections):
    left, ports = list(answers), set()

    def answer(connection, _):
        ports.add(connection.getpeername()[1])
        connection.sendall(left.pop(0))
        return True

    batch(2)
    with server(answer, tls=serving(certificate)) as (url, _):
        ran = sh(f"dispatch -q --max-retries 1 --to openai-chat/m --base-url {url} < in | grep -c '\"content\":\"yes\"'",
                 SSL_CERT_FILE=str(certificate))  # fmt: skip
    assert ran == (0, "2\n", "") and not left and len(ports) == connections


@pytest.mark.parametrize("file, why", [
    ("nowhere.pem", "SSL_CERT_FILE=nowhere.pem: No such file or directory"),
    (".", "SSL_CERT_FILE=.: Is a directory"),
    ("in", "SSL_CERT_FILE=in holds no certificates; they should be in PEM"),
])  # fmt: skip
@pytest.mark.parametrize("proxy", ["", "https_proxy=http://127.0.0.1:9 "])
def test_a_file_of_certificates_that_is_none_is_said_before_anybody_is_asked(sh, batch, file, why, proxy):
    batch(1)
    ran = sh(f"{proxy}dispatch -q --to openai-chat/m --base-url https://{NAME} < in > out", SSL_CERT_FILE=file)
    assert (ran.status, ran.err) == (2, f"dispatch: thread t0: {why}\n")


def relay(connection, port):
    """What a proxy does once it is connected; in one thread, as TLS is not to be read and written by two."""
    with socket.create_connection(("127.0.0.1", port)) as other:
        another = {connection: other, other: connection}
        while True:
            for one in select.select([connection, other], [], [])[0]:
                data = one.recv(1 << 16)  # of TLS a whole record, so that nothing is left behind that select cannot see
                if not data:
                    return
                another[one].sendall(data)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_through_a_proxy_whose_own_connection_may_be_tls(sh, batch, certificate, scheme):
    asked, there = [], threading.Barrier(6)

    def answer(connection, _):
        there.wait(120)  # all six are at once
        connection.sendall(CHUNKED)
        return True

    with server(answer, tls=serving(certificate)) as (url, _):

        def proxy(connection):
            with serving(certificate).wrap_socket(connection, True) if scheme == "https" else connection as connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(1 << 16)
                asked.append(head.split(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                relay(connection, int(url.rpartition(":")[2]))

        batch(6)
        with listening(proxy) as port:
            ran = sh(f"https_proxy={scheme}://127.0.0.1:{port} timeout 300 dispatch -q -j 6 --to openai-chat/m "
                     f"--base-url https://{NAME} < in | grep -c '\"content\":\"yes\"'",
                     SSL_CERT_FILE=str(certificate))  # fmt: skip
    assert ran == (0, "6\n", "") and asked == [f"CONNECT {NAME}:443 HTTP/1.1".encode()] * 6
