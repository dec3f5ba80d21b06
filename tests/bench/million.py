"""How fast trace is over a journal of a million spans: the first index, the next trace after 1,000 more, --by model over
all of it, and memory; beside it DuckDB on the same file, if it is installed (pip install duckdb).

    python tests/bench/million.py [SPANS]
"""

from __future__ import annotations

import importlib.util
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TRACE = (str(Path(sys.executable).parent / "trace"),)
MODELS = [("anthropic", "claude-opus-4-8"), ("openai", "gpt-5.4"), ("google", "gemini-3-pro"), ("ollama", "qwen3")]
AGENTS = ("writer", "reviewer", "editor")
TEXT = "The parser reads a field at a time, and keeps what a quote has opened until another closes it. " * 3
HEAD = '"id":"%s","key":"%064x","at":"%s"'
ABOUT = ('"op":"dispatch","slot":"response","agent":"%s","parent_run_id":"%s","input_id":"%s","runtime":"%s",'
         '"model":%s')  # fmt: skip
SPAN = ('{"v":1,"type":"span","thread":"%s","id":"%s","at":"%s",%s,"started_at":"%s","duration_ms":%s,'
        '"first_token_ms":%s,"status":"%s","usage":%s,"cost_usd":%s,"cost_source":%s,"attempts":[{"runtime":"%s",'
        '"model":"%s","status":"%s","duration_ms":%s}],"output_ids":["%s"]}')  # fmt: skip
USAGE = '{"input_tokens":%d,"cache_read_tokens":%d,"output_tokens":%d}'
MESSAGE = ('{"v":1,"type":"message","thread":"%s","id":"%s","at":"%s","role":"assistant","content":"%s","author":'
           '{"agent":"%s","runtime":"%s","model":"%s","provider":"%s"},"reply_to":"%s","run_id":"%s",'
           '"parent_run_id":"%s","finish":"stop"}')  # fmt: skip
# The last line: peak RSS of the largest process in KiB, seconds, seconds of the processors.
MEASURED = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
took, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, took, used.ru_utime + used.ru_stime)
"""
FLOOR = "import orjson,sys\nfor line in open(sys.argv[1], 'rb'): orjson.loads(line)"
DUCKDB = """
import duckdb, sys, time
db = duckdb.connect()
db.execute("set memory_limit = '4GB'")
began = time.perf_counter()
rows = db.execute('''
  select span.model, count(*), sum(span.cost_usd), count(*) - count(span.cost_usd), sum(span.usage.input_tokens),
    quantile_cont(span.duration_ms, 0.5), quantile_cont(span.duration_ms, 0.95)
  from (select records[1] as span from read_json(?, format = 'newline_delimited', columns = {
    type: 'varchar', records: 'struct(model varchar, cost_usd double, duration_ms double,
    usage struct(input_tokens bigint))[]'}) where type = 'outcome') group by all order by 3 desc''', [sys.argv[1]]).fetchall()
print(time.perf_counter() - began, len(rows))
"""


def ident(kind: int, number: int) -> str:
    """An id of the shape of ours."""
    return f"01a213d6-{number >> 16:04x}-7{kind:03x}-8{number & 0xFFF:03x}-{number:012x}"


def lines(start: int, count: int) -> Iterator[str]:
    """The two lines of the journal of each call: four calls a run, one run a thread, 10 s from call to call."""
    pick = random.Random(start)
    for number in range(start, start + count):
        runtime, model = MODELS[number % 4]
        agent, run, thread, span = AGENTS[number % 3], ident(1, number // 4), ident(2, number // 4), ident(3, number)
        asked, said = ident(4, number), ident(5, number)
        at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(1_780_000_000 + number * 10))
        took, failed = round(pick.lognormvariate(7, 1), 3), number % 50 == 7
        status = "error" if failed else "ok"
        usage = USAGE % (number % 5000, number % 1000, number % 700)
        cost, source = ("null", "null") if runtime == "ollama" else (f"{number % 9973 / 1e6:.6f}", '"table"')
        head, about = HEAD % (span, number, at), ABOUT % (agent, run, asked, runtime, f'"{model}"')
        yield f'{{"v":1,"type":"intent",{head},"thread":"{thread}",{about}}}\n'
        made = SPAN % (thread, span, at, about, at, took, round(took / 3, 3), status, usage, cost, source, runtime, model,
                       status, took, said)  # fmt: skip
        answer = MESSAGE % (thread, said, at, TEXT, agent, runtime, model, runtime, asked, span, run)
        yield f'{{"v":1,"type":"outcome",{head},"status":"{status}","records":[{made},{answer}]}}\n'


def measured(*line: str) -> tuple[float, float, float]:
    """(seconds, seconds of the processors, peak MiB) of a command."""
    ran = subprocess.run([sys.executable, "-c", MEASURED, *line], capture_output=True, text=True, check=True)
    peak, seconds, busy = ran.stdout.split()
    return float(seconds), float(busy), int(peak) / 1024


def main() -> None:
    """Print the figures."""
    spans = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        os.environ["XDG_STATE_HOME"] = folder
        journal = Path(folder, "mllm-pipe", "journal.jsonl")
        journal.parent.mkdir()
        with journal.open("w") as file:
            file.writelines(lines(0, spans))
        print(f"{spans} spans, {journal.stat().st_size / 1e6:.0f} MB, {os.cpu_count()} processors", flush=True)
        floor, floor_busy, _ = measured(sys.executable, "-c", FLOOR, str(journal))
        seconds, busy, peak = measured(*TRACE, "--journal")
        size = (journal.parent / "index.sqlite").stat().st_size / 1e6
        print(f"first index: {seconds:.2f} s, {spans / seconds:,.0f} spans/s; {busy:.2f} s of processors, {peak:.0f} MiB; "
              f"orjson alone parsing the lines: {floor:.2f} s, {floor_busy:.2f} s; the index has {size:.0f} MB", flush=True)  # fmt: skip
        asked = TRACE[0], "--journal", "--sql", "select model, count(*) from spans group by model"
        for what in ("the first --sql, which makes rows of it", "the next"):
            seconds, busy, peak = measured(*asked)
            print(f"{what}: {seconds:.2f} s, {busy:.2f} s of processors, {peak:.0f} MiB", flush=True)
        after, again = [], []
        for more in range(9):
            with journal.open("a") as file:
                file.writelines(lines(spans + 1000 * more, 1000))
            after.append(measured(*TRACE, "--journal"))
            again.append(measured(*TRACE, "--journal"))
        for what, place in (("wall", 0), ("processor", 1)):
            new, same = (statistics.median(one[place] for one in times) * 1000 for times in (after, again))
            print(
                f"trace after 1,000 new spans: {new:.0f} ms ({what}); with none new {same:.0f} ms; ratio {new / same:.2f}",
                flush=True,
            )
        for asked in ("--by=model", "--by=day", "--by=thread"):
            seconds, busy, peak = measured(*TRACE, "--journal", asked)
            print(
                f"trace {asked}: {seconds * 1000:.0f} ms, {busy * 1000:.0f} ms of processors, {peak:.0f} MiB",
                flush=True,
            )
        if importlib.util.find_spec("duckdb"):
            seconds, busy, peak = measured(sys.executable, "-c", DUCKDB, str(journal))
            print(
                f"duckdb, the sums by model from the same file: {seconds:.2f} s, {busy:.2f} s of processors, {peak:.0f} MiB"
            )


if __name__ == "__main__":
    main()
