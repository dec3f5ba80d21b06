"""What is wished of whom: of the targets that the user names, or for each thread of the one that its route names."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import copy
from functools import cache
from typing import Any

from mllm_pipe import configuration
from mllm_pipe.agents import Agent, Target, configured_agent, find, named_at, slot, usable_here
from mllm_pipe.calling.patience import Patience
from mllm_pipe.calling.span import Io
from mllm_pipe.errors import Usage
from mllm_pipe.runtimes import check_options, load
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import note
from mllm_pipe.thread import UNNAMED, admitted, branch
from mllm_pipe.turn import Wish

_OF_ONE = ("model", "base_url", "key_env")
_OF_TARGET = ("model", "base_url", "key_env", "pass_env", "max_tokens", "cwd", "allow", "first_byte_s")


class Wishes:
    """The wishes of a command, by thread. `content`: the prompt that is appended, None if there is none."""

    def __init__(
        self, prompt: str | None, flags: dict[str, Any], patience: Patience, on_text: Callable[[str], None] | None
    ) -> None:
        """flags: of dispatch. Usage if one of them names nothing that there is, or nobody could be asked.

        patience: on what terms. on_text: who hears an answer as it comes, where one agent is asked.
        """
        self.flags, self.patience = flags, patience
        specs = flags["specs"] or tuple(filter(None, [os.environ.get("MLLM_TO")]))
        if len(specs) > 1 and (lone := next((flag for flag in _OF_ONE if flags[flag]), None)):
            raise Usage(f"--{lone.replace('_', '-')} is for one --to alone; with several say --to RUNTIME:MODEL each")
        self.on_text = on_text if len(specs) < 2 else None
        self.system = flags["system"]
        self.content = self._content(prompt)
        self.same = self._same_for_all()
        self.to_routed = cache(self._to_routed)
        if specs:
            self.named = [self._to(*find(spec, **_of_target(flags))) for spec in specs]
            return
        self.named = []
        self.configuration = configuration.read()
        default = self.configuration["defaults"].get("to")
        given = _of_target(flags)
        self.default = None if default is None else self._to(*named_at(("defaults", "to"), default, **given))
        if not self.default and not self.configuration["routers"]:
            raise Usage(_nobody())

    @property
    def alone(self) -> bool:
        """True if one agent at most is asked about a thread."""
        return len(self.named) < 2

    def of(self, thread: Thread) -> list[Wish]:
        """The wishes for a thread. Usage if nobody is to be asked, BadRecord if its records are unsound."""
        if thread.fault:
            raise thread.fault
        if self.named:
            return self.named
        why = ""
        if any([record["type"] == "route" for record in thread.records]):
            from mllm_pipe.routing.standing import NoRoute, standing

            messages = branch(admitted(thread))
            try:
                route = standing(thread.records, messages, self.configuration)
            except NoRoute as none:
                why = str(none)
            else:
                wish = copy(self.to_routed(route["target"]))
                wish.route_id = route["id"]
                return [wish]
        if not self.default:
            why = why or "no --to, and the thread has no route"
            raise Usage(f"{why}; say --to SPEC, or route it first: | route NAME |")
        if why:
            note(f"thread {thread.id}: {why}; it goes to {self.default.target['spec']}, by [defaults] to")
        return [self.default]

    def _to_routed(self, agent: str) -> Wish:
        target, about = configured_agent(agent)
        return self._to(target | {flag: value for flag, value in _of_target(self.flags).items() if value}, about)

    def _to(self, target: Target, agent: Agent) -> Wish:
        flags = self.flags
        load(target["kind"])
        agent["name"] = flags["name"] or agent["name"] or UNNAMED
        agent["system"] = "\n\n".join(filter(None, [agent["system"], self.system])) or None
        wish = Wish(target, agent, flags["timeout"])
        wish.prompt, wish.pick, wish.patience, wish.on_text = self.content, flags["pick"], self.patience, self.on_text
        wish.skip_answered, wish.strict, wish.last = flags["skip_answered"], flags["strict"], flags["last"]
        wish.window, wish.max_turns = flags["window"], flags["max_turns"]
        wish.summarizer = slot(agent, target, "summarizer")
        wish.schema, wish.tools, wish.options, wish.run_tool = self.same
        wish.tool_choice = flags["tool_choice"]
        for one in (target, *self.patience.fallbacks) if wish.options else ():
            check_options(one, wish.options)
        return wish

    def _same_for_all(self) -> tuple[Any, list[dict[str, Any]], dict[str, Any], Any]:
        """The schema, tools, options and runner of tools, which need more than the flag says."""
        flags, schema, tools, options = self.flags, None, list[dict[str, Any]](), dict[str, Any]()
        if flags["schema"]:
            from mllm_pipe.structured import schema_of

            schema = schema_of(flags["schema"])
        if flags["tools"]:
            from mllm_pipe.tools import distinct, read

            tools = distinct([tool for file in flags["tools"] for tool in read(file)])
        if flags["options"]:
            from mllm_pipe.models import value

            options = {key: value(given) for key, given in flags["options"]}
        run_tool = _tool_runner(flags["run_tools"], flags["timeout"]) if flags["run_tools"] else None
        return schema, tools, options, run_tool

    def _content(self, prompt: str | None) -> str | list[dict[str, Any]] | None:
        """PROMPT, or the prompt of -t, as a message's content: with attachments, a list of parts."""
        flags = self.flags
        if prompt is not None and not prompt.strip():
            raise Usage("PROMPT is empty; an empty message is never sent")
        if flags["template"]:
            from mllm_pipe.prompts import filled

            prompt, system = filled(flags["template"], flags["parameters"], prompt)
            self.system = "\n\n".join(filter(None, [system, self.system])) or None
        elif flags["parameters"]:
            raise Usage("-p is the value of a placeholder of -t NAME")
        if not flags["files"]:
            return prompt
        from mllm_pipe import attachments

        return [{"type": "text", "text": prompt}] * bool(prompt) + [attachments.part(name) for name in flags["files"]]


def _of_target(flags: dict[str, Any]) -> dict[str, Any]:
    return {flag: flags[flag] for flag in _OF_TARGET}


def _nobody() -> str:
    return f"no --to, and nobody is asked by default; usable here: {', '.join(usable_here())}"


def _tool_runner(spec: str, timeout_s: float) -> Callable[[bytes], tuple[int, str, str]]:
    """--run-tools exec:CMD, as mllm_pipe.tools wants it."""
    target, _ = find(spec)
    if target["kind"] != "command":
        raise Usage(f"--run-tools {spec}: say exec:PROGRAM ARGUMENTS")
    program = load("command")
    return lambda call: program.run_tool(target["argv"], call, Io(timeout_s).left)
