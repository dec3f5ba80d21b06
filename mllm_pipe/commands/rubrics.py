"""mllm rubrics: what a judge may judge by, without a file."""

from __future__ import annotations

import click
import orjson

from mllm_pipe import cli
from mllm_pipe.judging import rubrics
from mllm_pipe.stream import show
from mllm_pipe.terminal import kind_of


@click.command("rubrics")
@cli.argument("name", required=False, metavar="[RUBRIC]")
@cli.option("--format", "form", type=click.Choice(["text", "ndjson"]), help="text on a terminal, ndjson in a pipe.")
@cli.common_options
def rubrics_command(name: str | None, form: str | None) -> int:
    """List the rubrics that judge --rubric knows by name, or show one whole: its criteria, weights and texts.

    RUBRIC is what --rubric takes: a name, @FILE or a text.
    """
    chosen = [rubrics.find(one) for one in ([name] if name else rubrics.names())]
    if (form or ("text" if kind_of(1) == "terminal" else "ndjson")) == "ndjson":
        show("".join(orjson.dumps(rubric, option=orjson.OPT_APPEND_NEWLINE).decode() for rubric in chosen))
        return 0
    for rubric in chosen:
        show(f"{rubric['name']:13} {rubric['description']}\n")
        least, most = rubric["scale"]
        for one in rubric["criteria"] if name else []:
            own = f", at least {one['least']:g} by itself" if "least" in one else ""
            show(f"\n{one['name']} (weight {one['weight']:g}{own})\n{one['text'].strip()}\n")
        if name:
            show(f"\nscores {least} to {most}; passes at {rubric['pass_at']:g} of 1\n")
    return 0
