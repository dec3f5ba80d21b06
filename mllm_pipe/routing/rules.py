"""Rules: which is the first that matches a subject, and why the others do not.

Rules are tried by priority, the highest first, else as they are written. Those that need a keyword are tried only if
there is one, so that fifty rules take hardly longer than the few that are about this text.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from mllm_pipe.bounded import Late, within
from mllm_pipe.configuration import CONDITION, Keys, Wrong, nearest
from mllm_pipe.errors import CallFailed
from mllm_pipe.routing.conditions import Condition, Conditions, Entry
from mllm_pipe.routing.subject import Subject
from mllm_pipe.routing.words import Keywords

SECONDS = 1.0  # of the processor, that all rules together may take of one thread

Body = dict[str, Any]  # of a route record: target, by, confidence, reason


class Rule(NamedTuple):
    """A rule: its name, where it leads (None: its learned router says), when it is tried, and what it asks."""

    name: str
    target: str | None
    priority: float
    condition: Condition
    learned: Any  # None, or mllm_pipe.routing.learned.Learned, which is imported only if there is one


class Rules:
    """The rules of a router, made to be asked many times."""

    def __init__(self, entries: list[Entry], children: list[str], wrong: Wrong, folder: str) -> None:
        """entries: as configured. wrong: makes Usage of what stands in them, by keys from `rules` on. folder: from
        which files named in them are seen. Usage for a target that is no child, a pattern that is none, and so on."""
        conditions = Conditions(wrong)
        made = [_rule(entry, ("rules", place), children, conditions, wrong, folder)
                for place, entry in enumerate(entries)]  # fmt: skip
        names = set[str]()
        for place, rule in enumerate(made):
            if rule.name in names:
                raise wrong(f"{rule.name!r} is the name of two", "rules", place, "name")
            names.add(rule.name)
        self.rules = sorted(made, key=lambda rule: -rule.priority)  # stable
        self.searches = conditions.searches
        self.children = children
        self.keywords = Keywords(conditions.lists)
        self.always = [place for place, rule in enumerate(self.rules) if rule.condition.needs is None]
        self.of_list: dict[int, list[int]] = {}
        for place, rule in enumerate(self.rules):
            for number in rule.condition.needs or ():
                self.of_list.setdefault(number, []).append(place)

    def first(self, subject: Subject) -> Body | None:
        """What the first rule that matches says; None if none does. CallFailed("timeout") if a regex takes too long."""
        if not self.searches:
            return self._first(subject)
        try:
            with within(SECONDS):
                return self._first(subject)
        except Late:
            raise _late() from None

    def _first(self, subject: Subject) -> Body | None:
        hits = self.keywords.hits(subject.text)
        places = self.always
        if hits:
            places = sorted({*places, *[place for number in hits for place in self.of_list.get(number, ())]})
        for place in places:
            rule = self.rules[place]
            if rule.condition.holds(subject, hits):
                reason = rule.condition.told(subject, hits)
                if not rule.learned:
                    return {"target": rule.target, "by": f"rule:{rule.name}", "confidence": 1.0, "reason": reason}
                target, confidence, said = rule.learned.chosen(subject.text, rule.target, self.children)
                if target:
                    reason = f"rule {rule.name}: {said}"
                    return {"target": target, "by": "learned", "confidence": confidence, "reason": reason}
        return None

    def explained(self, subject: Subject) -> list[tuple[Rule, str | None, str]]:
        """Each rule, in the order in which they are tried; the target to which it would lead by itself, None if it does
        not match; and why. CallFailed as `first`."""
        try:
            with within(SECONDS):
                hits = self.keywords.hits(subject.text)
                found = []
                for rule in self.rules:
                    target, said = None, rule.condition.told(subject, hits)
                    if rule.condition.holds(subject, hits):
                        target = rule.target
                        if rule.learned:
                            target, _, said = rule.learned.chosen(subject.text, rule.target, self.children)
                    found.append((rule, target, said))
                return found
        except Late:
            raise _late() from None


def _rule(entry: Entry, at: Keys, children: list[str], conditions: Conditions, wrong: Wrong, folder: str) -> Rule:
    name, target = entry.get("name", str(int(at[-1]) + 1)), entry.get("target")
    if not name.strip() or not name.isprintable() or len(name) > 200:
        raise wrong("is no name", *at, "name")
    if target is None and "learned" not in entry:
        raise wrong("has no target", *at)
    if target is not None and target not in children:
        raise wrong(f"is {target!r}, no child of the router{nearest(target, children)}", *at, "target")
    asked = {key: value for key, value in entry.items() if key in CONDITION}
    if "learned" not in entry:
        if "above" in entry:
            raise wrong("goes with learned", *at, "above")
        return Rule(name, target, entry.get("priority", 0), conditions.of(asked, at), None)
    from mllm_pipe.routing import learned

    model = learned.load(os.path.join(folder, entry["learned"]), entry.get("above"))
    if learned.is_binary(model.model) == (target is None):
        tells = "has no target: which child is the strong one?" if target is None else (
            f"has a target, and {model.name} tells targets apart: the one that it finds is where the thread goes")
        raise wrong(tells, *at)
    condition = conditions.of(asked, at) if asked else Condition(lambda subject, hits: True, lambda subject, hits: "")
    return Rule(name, target, entry.get("priority", 0), condition, model)


def _late() -> CallFailed:
    why = f"the rules took longer than {SECONDS:g} s over its text: a regex goes back and forth in it"
    return CallFailed("timeout", why, billed="no")
