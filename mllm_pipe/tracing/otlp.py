"""Runs as OpenTelemetry traces, in the JSON form of OTLP (opentelemetry-proto 1.x). Pure.

A run is one trace: its root is the span `invoke_workflow GROUP`, below it one span for each call. The names are those
of the GenAI semantic conventions, release 0.1.0, which are still in development: SEMCONV and MAPPING stand in the
scope of every export, and MAPPING goes up with each change of what is made here. What the conventions have no name
for is `mllm.*`; what Phoenix and other readers of OpenInference go by stands beside them.

    dispatch    chat MODEL (client); of an agent program: invoke_agent NAME
    summarize   chat MODEL (client)
    judge       judge RUBRIC (internal, EVALUATOR), with an event gen_ai.evaluation.result for each finding, and below
                it the call: chat MODEL
    route       route ROUTER (internal, DECISION), and below it the call
    handoff     a span link from the call to the one that made what it worked on: in a pipe no call is another's parent

Ids are made of run ids, so the same runs are the same bytes. Money stands once, at the call that cost it.
"""

from __future__ import annotations

import re
from calendar import timegm
from time import strptime
from typing import Any

from mllm_pipe import __version__
from mllm_pipe.envelope import Record
from mllm_pipe.lines import digest
from mllm_pipe.runs import Fold
from mllm_pipe.thread import parts_of

SEMCONV = "0.1.0"
MAPPING = 1
Json = dict[str, Any]
Findings = dict[tuple[str, str], list[Record]]  # of Fold.made_of
_INTERNAL, _CLIENT, _ERROR = 1, 3, 2  # SpanKind, StatusCode
_PROGRAMS = ("claude", "codex", "gemini", "opencode", "exec")
_PROVIDERS = {"claude": "anthropic", "codex": "openai", "gemini": "gcp.gemini", "google": "gcp.gemini", "xai": "x_ai",
              "mistral": "mistral_ai", "openai-chat": "openai"}  # fmt: skip
_USAGE = {"input_tokens": "input_tokens", "cache_read_tokens": "cache_read.input_tokens",
          "cache_write_tokens": "cache_write.input_tokens", "output_tokens": "output_tokens",
          "reasoning_tokens": "reasoning.output_tokens"}  # fmt: skip
_COUNTS = {"input_tokens": "prompt", "cache_read_tokens": "prompt_details.cache_read",
           "cache_write_tokens": "prompt_details.cache_write", "output_tokens": "completion",
           "reasoning_tokens": "completion_details.reasoning"}  # fmt: skip


def of_runs(runs: list[Json], fold: Fold, resource: Json, *, content: bool = False, parent: str = "") -> list[Json]:
    """An ExportTraceServiceRequest for each run: its trace.

    fold: what the run was made of, with its texts if content is wanted; without, no text of a message, a model or a
    vendor is in it. resource: its attributes. parent: the W3C traceparent to hang the run on, if no span of it has its
    own.
    """
    made_of = fold.made_of()
    return [_of_run(run, fold, made_of, resource, content, parent) for run in runs]


def _of_run(run: Json, fold: Fold, made_of: Findings, resource: Json, content: bool, parent: str) -> Json:
    spans = [fold.spans[stage["run_id"]] for stage in run["stages"]]
    parent = next((one["traceparent"] for one in spans if "traceparent" in one), parent)
    made = _Trace(run, fold, made_of, content, parent)
    scope = {"name": "mllm-pipe", "version": __version__,
             "attributes": _attributes({"mllm.semconv.gen_ai": SEMCONV, "mllm.mapping": MAPPING})}  # fmt: skip
    all_spans = [made.root(), *(one for span in spans for one in made.spans(span))]
    return {"resourceSpans": [{"resource": {"attributes": _attributes(resource)},
                               "scopeSpans": [{"scope": scope, "spans": all_spans}]}]}  # fmt: skip


class _Trace:
    """The spans of one run."""

    def __init__(self, run: Json, fold: Fold, made_of: Findings, content: bool, parent: str) -> None:
        self.run, self.fold, self.content = run, fold, content
        self.trace_id, self.above = _traced(parent) or (_trace_id(run["id"]), "")
        self.root_id = digest(f"run {run['id']}".encode())[:16]
        self.made_of, self.alone = made_of, made_of.get(("run", run["id"]), [])
        self.edges = {stage["run_id"]: fold.edges(fold.spans[stage["run_id"]]) for stage in run["stages"]}
        known = [_nanoseconds(one.get("at", "")) for one in self.alone]
        self.started = _nanoseconds(run["started_at"] or "") or min(filter(None, known), default=0)

    def root(self) -> Json:
        name, run = self.run["group"], self.run
        about = {
            "gen_ai.operation.name": "invoke_workflow", "gen_ai.agent.name": name, "gen_ai.workflow.name": name,
            "openinference.span.kind": "CHAIN", "mllm.run.id": run["id"], "mllm.status": run["status"],
            "mllm.unpriced": run["unpriced"],
        }  # fmt: skip
        if run["status"] not in ("ok", "no"):
            about["error.type"] = run["status"]
        threads = {stage["thread"] for stage in run["stages"]} | {one["thread"] for one in run["findings"]}
        if len(threads) == 1:
            about |= _conversation(next(iter(threads)))
        span = self._span("invoke_workflow" + (f" {name}" if name else ""), self.root_id, self.above, _INTERNAL,
                          self.started, run["duration_ms"], about)  # fmt: skip
        span |= _listed("events", [event for one in self.alone for event in self._finding(one)])
        return span | ({} if run["status"] in ("ok", "no") else {"status": {"message": run["status"], "code": _ERROR}})

    def spans(self, span: Record) -> list[Json]:
        """The span of a call; of what was made by a call for something else, that and the call below it."""
        op, ident = span["op"], digest(f"span {span['id']}".encode())[:16]
        start, took = _nanoseconds(span["started_at"]) or self.started, span["duration_ms"]
        findings = self.made_of.get(("span", span["id"]), [])
        seen = {"mllm.span.id": span["id"], "mllm.op": op, "mllm.slot": span.get("slot"),
                "mllm.stage": span.get("stage"), "mllm.group": span.get("group"),
                "mllm.status": span["status"]}  # fmt: skip
        seen |= _conversation(span["thread"])
        links = _listed("links", [self._link(edge) for edge in self.edges[span["id"]] if edge["from_run_id"]])
        events = _listed("events", [*self._attempts(span, start), *_losses(span, start),
                                    *(event for one in findings for event in self._finding(one))])  # fmt: skip
        code, failed = self._why(span, findings)
        seen["error.type"] = code
        if op not in ("judge", "route"):
            name, kind, about = self._call(span)
            return [self._span(name, ident, self.root_id, kind, start, took, about | seen) | events | links | failed]
        found = next((one for one in findings if one["type"] in ("verdict", "route")), {})
        what = found.get("rubric") if op == "judge" else found.get("router")
        purpose: Json = {"openinference.span.kind": "EVALUATOR" if op == "judge" else "DECISION"}
        purpose |= {"mllm.route.target": found.get("target"), "mllm.route.by": found.get("by")} if op == "route" else {}
        outer = self._span(_named(op, what), ident, self.root_id, _INTERNAL, start, took, purpose | seen)
        name, kind, about = self._call(span)
        about |= _conversation(span["thread"]) | {"error.type": code}
        inner = self._span(name, digest(f"call {span['id']}".encode())[:16], ident, kind, start, took, about)
        return [outer | events | links | failed, inner | failed]

    def _span(self, name: str, ident: str, above: str, kind: int, start: int, took: float, about: Json) -> Json:
        span: Json = {"traceId": self.trace_id, "spanId": ident} | ({"parentSpanId": above} if above else {})
        return span | {"name": name, "kind": kind, "startTimeUnixNano": str(start),
                       "endTimeUnixNano": str(start + round(took * 1e6)), "attributes": _attributes(about)}  # fmt: skip

    def _call(self, span: Record) -> tuple[str, int, Json]:
        """(name, kind, attributes) of the span of a call."""
        runtime, model, agent = span.get("runtime", ""), span.get("model"), span.get("agent")
        answers = [self.fold.messages[key] for ident in span.get("output_ids", [])
                   if (key := (span["thread"], ident)) in self.fold.messages]  # fmt: skip
        origin = answers[-1].get("origin", {}) if answers else {}
        provider = (answers[-1].get("author", {}).get("provider") if answers else None) or runtime
        provider = _PROVIDERS.get(provider, provider)
        usage, cost, first = span.get("usage") or {}, span.get("cost_usd"), span.get("first_token_ms")
        about = {
            "gen_ai.provider.name": provider, "gen_ai.request.model": model, "gen_ai.response.model": model,
            "gen_ai.agent.name": agent if agent != "assistant" else None,
            "gen_ai.response.id": origin.get("response_id"),
            "gen_ai.response.finish_reasons": [one["finish"] for one in answers if "finish" in one] or None,
            "gen_ai.response.time_to_first_chunk": None if first is None else first / 1000,
            "mllm.runtime": runtime, "mllm.cost_usd": cost, "mllm.cost_source": span.get("cost_source"),
            "llm.model_name": model, "llm.provider": provider, "llm.cost.total": cost,
        }  # fmt: skip
        about |= {f"gen_ai.usage.{_USAGE[name]}": count for name, count in usage.items() if name in _USAGE}
        about |= {f"llm.token_count.{_COUNTS[name]}": count for name, count in usage.items() if name in _COUNTS}
        if "input_tokens" in usage and "output_tokens" in usage:
            about["llm.token_count.total"] = usage["input_tokens"] + usage["output_tokens"]
        if self.content:
            about |= self._texts(span, answers)
        if runtime in _PROGRAMS and span["op"] == "dispatch":
            about |= {"gen_ai.operation.name": "invoke_agent", "openinference.span.kind": "AGENT",
                      "gen_ai.agent.name": about["gen_ai.agent.name"] or runtime}  # fmt: skip
            return _named("invoke_agent", about["gen_ai.agent.name"]), _CLIENT, about
        about |= {"gen_ai.operation.name": "chat", "openinference.span.kind": "LLM"}
        return _named("chat", model), _CLIENT, about

    def _texts(self, span: Record, answers: list[Record]) -> Json:
        """What was sent, as far as it is known, and what came back."""
        from orjson import dumps

        sent = self.fold.before(span["thread"], span.get("input_id"))
        told = [part for one in sent if one["role"] == "system" for part in _parts(one)]
        told += [{"type": "text", "content": span["system"]}] if "system" in span else []
        asked = [{"role": one["role"], "parts": _parts(one)} for one in sent if one["role"] != "system"]
        said = [
            {"role": "assistant", "parts": _parts(one), "finish_reason": one.get("finish", "stop")} for one in answers
        ]
        texts = {"gen_ai.system_instructions": told, "gen_ai.input.messages": asked, "gen_ai.output.messages": said}
        return {name: dumps(value).decode() for name, value in texts.items() if value}

    def _link(self, edge: Json) -> Json:
        """To the call that made what was worked on; it may be of another run, and so of another trace."""
        maker = self.fold.spans[edge["from_run_id"]]
        of_run = maker.get("parent_run_id", "-")
        trace_id = self.trace_id
        if of_run != self.run["id"]:
            trace_id = (_traced(maker.get("traceparent", "")) or (_trace_id(of_run), ""))[0]
        about = {"mllm.handoff.from": edge["from"], "mllm.handoff.message_id": edge["message_id"],
                 "mllm.handoff.wait_ms": edge["wait_ms"]}  # fmt: skip
        return {"traceId": trace_id, "spanId": digest(f"span {maker['id']}".encode())[:16],
                "attributes": _attributes(about)}  # fmt: skip

    def _attempts(self, span: Record, at: int) -> list[Json]:
        """An event for each try, where there was more than one, or it failed; placed by the waits and durations."""
        attempts = span.get("attempts", [])
        if len(attempts) < 2 and all(one["status"] == "ok" for one in attempts):
            return []
        events = []
        for number, one in enumerate(attempts, 1):
            at += round(one.get("wait_ms", 0) * 1e6)
            about = {
                f"mllm.attempt.{name}": one.get(name) for name in ("runtime", "model", "status", "code", "duration_ms")
            }
            events.append(_event("mllm.attempt", at, {"mllm.attempt.number": number} | about))
            at += round(one.get("duration_ms", 0) * 1e6)
        return events

    def _finding(self, one: Record) -> list[Json]:
        """A verdict, route, summary or error as events."""
        at = _nanoseconds(one.get("at", "")) or self.started
        if one["type"] == "verdict":
            label = {True: "pass", False: "fail", None: "none"}[one["pass"]]
            whole = {"name": one.get("rubric") or "verdict", "score.value": one.get("score"), "score.label": label}
            rest = [{"name": each["name"], "score.value": each.get("score"),
                     "explanation": each.get("reason") if self.content else None}
                    for each in one.get("criteria", [])]  # fmt: skip
            told = [{f"gen_ai.evaluation.{name}": value for name, value in each.items()} for each in [whole, *rest]]
            return [_event("gen_ai.evaluation.result", at, each | {"mllm.verdict.id": one["id"]}) for each in told]
        names = {"route": ("router", "target", "by", "confidence"), "summary": (), "error": ("code", "billed")}[
            one["type"]
        ]
        names += {"route": ("reason",), "error": ("message",)}.get(one["type"], ()) if self.content else ()
        about = {f"mllm.{one['type']}.{name}": one.get(name) for name in names}
        return [_event(f"mllm.{one['type']}", at, about | {f"mllm.{one['type']}.id": one["id"]})]

    def _why(self, span: Record, findings: list[Record]) -> tuple[str | None, Json]:
        """(error.type, status) of what gave no whole answer. Success sets none, by the conventions."""
        if span["status"] == "ok":
            return None, {}
        error: Json = next((one for one in findings if one["type"] == "error"), {})
        codes = [one["code"] for one in span.get("attempts", []) if "code" in one]
        code = error.get("code") or (codes[-1] if codes else span["status"])
        said = error.get("message") if self.content else None
        return code, {"status": {"message": f"{code}: {said}" if said else code, "code": _ERROR}}


def resource_of(environment: dict[str, str]) -> Json:
    """The attributes of the resource, by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES."""
    from urllib.parse import unquote

    pairs = [pair.partition("=") for pair in environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",") if "=" in pair]
    given = {name.strip(): unquote(value.strip()) for name, _, value in pairs}
    named = environment.get("OTEL_SERVICE_NAME") or given.get("service.name") or "mllm-pipe"
    return {"service.version": __version__} | given | {"service.name": named}


def _attributes(values: Json) -> list[Json]:
    """A list of KeyValue; what is None is left out."""
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value is not None]


def _value(value: Any) -> Json:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(one) for one in value]}}
    return {"stringValue": str(value)}


def _event(name: str, at: int, about: Json) -> Json:
    return {"timeUnixNano": str(at), "name": name, "attributes": _attributes(about)}


def _losses(span: Record, at: int) -> list[Json]:
    return [_event("mllm.loss", at, {f"mllm.loss.{name}": one.get(name) for name in ("what", "action", "why")})
            for one in span.get("losses", [])]  # fmt: skip


def _parts(message: Record) -> list[Json]:
    """The parts of a message in the form of the conventions' JSON schemas; of a file its name, not its bytes."""
    found = []
    for part in parts_of(message["content"]):
        kind = part["type"]
        if kind == "tool_call":
            found.append({"type": "tool_call", "id": part["id"], "name": part["name"], "arguments": part["arguments"]})
        elif kind == "tool_result":
            found.append({"type": "tool_call_response", "id": part["call_id"], "response": part["content"]})
        elif kind == "file":
            found.append({"type": "file", "mime_type": part["media_type"], "name": part.get("name")})
        elif kind in ("text", "refusal", "reasoning"):
            found.append({"type": "reasoning" if kind == "reasoning" else "text", "content": part.get("text", "")})
        else:
            found.append({"type": kind} | ({"value": part["value"]} if "value" in part else {}))
    return found


def _conversation(thread: str) -> Json:
    return {"gen_ai.conversation.id": thread, "session.id": thread}


def _named(operation: str, what: Any) -> str:
    return f"{operation} {what}" if what else operation


def _listed(name: str, values: list[Json]) -> Json:
    return {name: values} if values else {}


def _traced(parent: str) -> tuple[str, str] | None:
    """(trace id, span id) of a W3C traceparent; None if it is none, or one of zeros, which is invalid."""
    found = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", parent)
    return (found[1], found[2]) if found and int(found[1], 16) and int(found[2], 16) else None


def _trace_id(run: str) -> str:
    """The id of the run without its dashes, where it is a UUID; else a digest of it."""
    plain = run.replace("-", "")
    return plain if re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", run) and int(plain, 16) else \
        digest(f"trace {run}".encode())[:32]  # fmt: skip


def _nanoseconds(stamp: str) -> int:
    """Nanoseconds since the epoch of one of the envelope's times, exactly; 0 for a text that is none."""
    try:
        whole = timegm(strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0
    return whole * 10**9 + int(stamp[20:-1].ljust(9, "0") or 0)
