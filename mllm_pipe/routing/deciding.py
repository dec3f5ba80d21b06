"""Deciding where a thread goes: the route that it has, the rules, the model, the default; and the records of it."""

from __future__ import annotations

from typing import Any

from mllm_pipe import configuration
from mllm_pipe.calling.call import ask
from mllm_pipe.calling.patience import Patience
from mllm_pipe.closed_form import Invalid
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import WRITE_FAILED, CallFailed, Failure, Outcome, Usage
from mllm_pipe.routing.question import question, read
from mllm_pipe.routing.router import Router
from mllm_pipe.routing.standing import NoRoute, standing
from mllm_pipe.routing.subject import Subject
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import note
from mllm_pipe.thread import admitted, branch
from mllm_pipe.turn import complaint, tell_unkept

Body = dict[str, Any]  # of a route record: target, by, confidence, reason


class Decision:
    """What is decided of a thread, in two steps: by what is here, in the main thread; by the model, in any.

    route: the record, once there is one; kept: it was in the thread before. made: the records that are added.
    """

    __slots__ = ("thread", "messages", "route", "kept", "made", "failure")

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.messages: list[Record] = []
        self.route: Record | None = None
        self.kept = False
        self.made: list[Record] = []
        self.failure: Failure | None = None

    def by_rules(self, router: Router, again: bool) -> None:
        """Keep the route that the thread has, unless `again`, or take what the rules say. A failure is kept."""
        try:
            if self.thread.fault:
                raise self.thread.fault
            self.messages = branch(admitted(self.thread))
            if not again and (route := _kept(self.thread.records, self.messages, router)):
                self.route, self.kept = route, True
                return
            subject = Subject(self.messages)
            if not subject.turn:
                raise Usage("nothing to route: the thread asks nothing yet")
            if body := router["rules"].first(subject):
                self._say(router, body)
            elif router["target"] is None:
                self._say(router, _default(router, "no rule matches"))
        except Failure as failure:
            self._fail(failure)

    def by_model(
        self, router: Router, timeout_s: float, patience: Patience, outcome: Outcome, measuring: bool = False
    ) -> None:
        """Ask the router slot, if nothing is decided yet. Where it fails or its answer is none, the default stands in.

        Its failure is the thread's without a default; where the answer is unheard, as a thread keeps the route it has;
        and where the router is measured.
        """
        if self.route or self.failure:
            return
        thread, children = self.thread, router["children"]
        request, losses = question(self.messages, children)
        about: Record = {"thread": thread.id, "op": "route", "slot": "router", "agent": router["name"],
                         "parent_run_id": thread.run, "input_id": self.messages[-1]["id"]}  # fmt: skip
        if losses:
            about["losses"] = losses

        def make(result: dict[str, Any], span: Record) -> list[Record]:
            try:
                target, confidence, reason = read(result, list(children))
            except Invalid as invalid:
                body = _default(router, f"the router's answer is no route: {invalid}")
            else:
                body = {"target": target, "by": "model", "confidence": confidence, "reason": reason}
                if confidence < router["min_confidence"]:
                    sure = f"{target} at {confidence:.2f}, below {router['min_confidence']:g}: {reason}"
                    body = _default(router, sure) | {"confidence": confidence}
            return [self._record(router, body | {"run_id": span["id"]})]

        try:
            call = ask(router["target"], request, about, timeout_s=timeout_s, make=make, patience=patience)
        except Failure as failure:
            if failure.status == WRITE_FAILED:
                raise
            self._fail(failure)
            return
        self.made.append(call.span)
        tell_unkept(call, thread, outcome)
        if call.failure is None and not call.made:
            call.failure = CallFailed("empty", "it said nothing", billed="yes")
        if call.failure is None:
            self._add(call.made[0])
        elif measuring or router["default"] is None or call.failure.code == "unheard":
            failed = CallFailed(call.failure.code, f"{router['target']['runtime']}: {call.failure}",
                                billed=call.failure.billed)  # fmt: skip
            self._fail(failed, call.span)
        else:
            why = f"{router['target']['runtime']}: {call.failure}"
            note(f"thread {thread.id}: {why}; it goes to {router['default']}, the default")
            self._say(router, _default(router, why) | {"run_id": call.span["id"]})

    def _say(self, router: Router, body: Body) -> None:
        self._add(self._record(router, body))

    def _add(self, route: Record) -> None:
        self.route = route
        self.made.append(route)

    def _record(self, router: Router, body: Body) -> Record:
        thread = self.thread
        return {
            "v": 1, "type": "route", "thread": thread.id, "id": new_id(), "at": timestamp(), "router": router["name"],
            **body, "candidates": list(router["children"]), "input_id": self.messages[-1]["id"],
            "parent_run_id": thread.run,
        }  # fmt: skip

    def _fail(self, failure: Failure, span: Record | None = None) -> None:
        self.failure = failure
        self.made.append(complaint(failure, self.thread, span))


def _default(router: Router, why: str) -> Body:
    by = "none" if router["default"] is None else "default"
    return {"target": router["default"], "by": by, "confidence": None, "reason": why}


def _kept(records: list[Record], messages: list[Record], router: Router) -> Record | None:
    """The route that the thread has by this router, if it still holds."""
    if not any([record["type"] == "route" for record in records]):
        return None
    try:
        route = standing(records, messages, configuration.read())
    except NoRoute:
        return None
    return route if route["router"] == router["name"] and route["target"] in router["children"] else None
