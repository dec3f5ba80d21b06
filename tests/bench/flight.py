"""Threads in flight: `dispatch -j N` beside a bare aiohttp client that makes the same calls, in turn.

    python tests/bench/flight.py --calls 3000 --jobs 100 --runs 3

The server (a process of its own, asyncio) answers each Chat Completions call after 200 ms, so that the ideal is N / 0.2 s.
The peers are no dependencies: this file installs them into an environment of their own (`--venv DIR`); with `--all`
also litellm, whose `acompletion` makes the same calls, and llm, started by xargs for each of 60 calls, as it has no -j.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DELAY_S = 0.2
EVENTS = (
    '{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"hello"}}]}',
    '{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
    '{"id":"c","object":"chat.completion.chunk","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}',
    "[DONE]",
)
BODY = "".join(f"data: {event}\n\n" for event in EVENTS).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Answering(asyncio.Protocol):
    """One connection: each request is answered after the delay."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.heard = transport, b""

    def data_received(self, data: bytes) -> None:
        self.heard += data
        while b"\r\n\r\n" in self.heard:
            head, _, rest = self.heard.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(rest) < size:
                return
            self.heard = rest[size:]
            asyncio.get_running_loop().call_later(DELAY_S, self.answer)

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(ANSWER)


async def serve() -> None:
    """Say the port, and answer until stdin ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", 0, backlog=2000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


async def bare(url: str, calls: int, jobs: int) -> None:
    """The same calls by aiohttp, with nothing around them but reading the answer's events."""
    import aiohttp

    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "question 1"}]}
    places = asyncio.Semaphore(jobs)

    async def one(session: aiohttp.ClientSession) -> None:
        async with places, session.post(f"{url}/chat/completions", json=body) as answer:
            said = [json.loads(line[6:]) async for line in answer.content if line.startswith(b"data: {")]
            assert said[0]["choices"][0]["delta"]["content"] == "hello"

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=jobs)) as session:
        await asyncio.gather(*(one(session) for _ in range(calls)))


async def litellm(url: str, calls: int, jobs: int) -> None:
    """The same calls by litellm."""
    from litellm import acompletion

    places = asyncio.Semaphore(jobs)
    asked = {"model": "openai/m", "api_base": url, "api_key": "x", "stream": True}

    async def one() -> None:
        async with places:
            answer = await acompletion(messages=[{"role": "user", "content": "question 1"}], **asked)
            said = [chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices]
            assert "".join(said) == "hello"

    await asyncio.gather(*(one() for _ in range(calls)))


def timed(argv: list[str], env: dict[str, str], stdin: Path | None = None) -> tuple[float, float]:
    """(wall seconds, peak MiB) of a program."""
    started = time.perf_counter()
    with open(stdin or os.devnull, "rb") as given:
        child = subprocess.Popen(argv, env=env, stdin=given, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, (argv, status)
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("role", nargs="?", choices=["serve", "bare", "litellm"])
    given.add_argument("--url")
    given.add_argument("--calls", type=int, default=3000)
    given.add_argument("--jobs", type=int, nargs="+", default=[100, 500])
    given.add_argument("--runs", type=int, default=3)
    given.add_argument("--venv", default=os.path.join(tempfile.gettempdir(), "mllm-bench-venv"))
    given.add_argument("--all", action="store_true")
    flags = given.parse_args()
    if flags.role == "serve":
        asyncio.run(serve())
    elif flags.role == "bare":
        asyncio.run(bare(flags.url, flags.calls, flags.jobs[0]))
    elif flags.role == "litellm":
        asyncio.run(litellm(flags.url, flags.calls, flags.jobs[0]))
    else:
        compare(flags)


def compare(flags: argparse.Namespace) -> None:
    """Print a line for each number of jobs: ours, the ideal, and the peer, measured in turn."""
    peer = Path(flags.venv) / "bin/python"
    if not peer.exists():
        subprocess.run([sys.executable, "-m", "venv", flags.venv], check=True)
    subprocess.run([peer, "-m", "pip", "install", "--quiet", "aiohttp", *(["litellm", "llm"] if flags.all else [])], check=True)
    with tempfile.TemporaryDirectory() as folder:
        threads = Path(folder) / "threads.jsonl"
        with open(threads, "w") as file:
            for n in range(flags.calls):
                record = {"v": 1, "type": "message", "thread": f"t{n}", "id": f"m{n}", "role": "user", "content": f"question {n}"}
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
        server = subprocess.Popen([sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout and server.stdin
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLLM"))}
        env = clean | {"HOME": folder, "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}"}
        print(f"{os.cpu_count()} processors, {flags.calls} calls of {DELAY_S} s, medians of {flags.runs}, in turn")
        print("  jobs  ideal/s  dispatch/s  of ideal  aiohttp/s  of aiohttp  peak MiB")
        for jobs in flags.jobs:
            ours, peers, peak = [], [], 0.0
            for _ in range(flags.runs):
                line = ["dispatch", "-q", "-j", str(jobs), "--to", "openai-chat:m", "--base-url", url]
                wall, size = timed(line, env, threads)
                ours, peak = [*ours, flags.calls / wall], max(peak, size)
                line = [str(peer), __file__, "bare", "--url", url, "--calls", str(flags.calls), "--jobs", str(jobs)]
                peers.append(flags.calls / timed(line, clean)[0])
            ideal, mine, theirs = jobs / DELAY_S, statistics.median(ours), statistics.median(peers)
            print(f"{jobs:6} {ideal:8.0f} {mine:11.0f} {mine / ideal:9.2f} {theirs:10.0f} {mine / theirs:11.2f} {peak:9.0f}")
        if flags.all:
            others(flags, peer, url, clean | {"HOME": folder}, folder)
        server.stdin.close()
        server.wait()


def others(flags: argparse.Namespace, peer: Path, url: str, env: dict[str, str], folder: str) -> None:
    """Print what the peers that are tools, not clients, make of it."""
    jobs = flags.jobs[0]
    line = [str(peer), __file__, "litellm", "--url", url, "--calls", str(flags.calls), "--jobs", str(jobs)]
    wall, size = timed(line, env)
    print(f"litellm acompletion, {jobs} at once: {flags.calls / wall:.0f}/s, {size:.0f} MiB")
    (Path(folder) / "extra-openai-models.yaml").write_text(f"- model_id: m\n  model_name: m\n  api_base: {url}\n")
    with open(Path(folder) / "numbers", "w") as file:
        file.write("".join(f"{n}\n" for n in range(60)))
    llm = env | {"LLM_USER_PATH": folder, "OPENAI_API_KEY": "x"}
    timed([str(peer.parent / "llm"), "-n", "-m", "m", "first"], llm)  # in a new home, eight at once get in one another's way
    wall, _ = timed(["xargs", "-P", "8", "-I", "N", str(peer.parent / "llm"), "-n", "-m", "m", "question N"], llm, Path(folder) / "numbers")
    print(f"xargs -P 8 over llm: {60 / wall:.1f}/s")
    dispatch = f"{Path(sys.executable).parent}/dispatch --to openai-chat:m --base-url {url} --new -q"
    wall, _ = timed(["xargs", "-P", "8", "-I", "N", *dispatch.split(), "question N"], env, Path(folder) / "numbers")
    print(f"xargs -P 8 over dispatch: {60 / wall:.1f}/s")


if __name__ == "__main__":
    main()
