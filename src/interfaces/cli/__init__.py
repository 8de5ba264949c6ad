"""The `smallgpt` command. Commands are named as strings and imported when called, so that `--help` loads no torch."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from smallgpt import __version__
from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces import phases
from smallgpt.interfaces.cli import errors

if TYPE_CHECKING:
    from cyclopts import App

ABOUT = "smallgpt: a small GPT, from a corpus to text, with every part readable and every hot operation swappable."

FIRST_STEPS = """\
First steps:
  smallgpt train demo
  smallgpt generate runs/demo --prompt "Once upon a time"
  smallgpt COMMAND --help

Any command takes --debug, which shows the traceback of an error.
Exit codes: 0 done, 2 usage or configuration, 3 data, 4 checkpoint, 5 numerics,
6 hardware, 130 or 143 interrupted."""

COMMANDS = {
    "prepare": ("smallgpt.interfaces.cli.prepare:app", "Turn a corpus into a data folder."),
    "train": ("smallgpt.interfaces.cli.train:train", "Train a model, or go on with a run."),
    "plan": ("smallgpt.interfaces.cli.plan:plan", "Plan training on many GPUs, by arithmetic."),
    "evaluate": ("smallgpt.interfaces.cli.evaluate:evaluate", "Score a model on a whole text."),
    "generate": ("smallgpt.interfaces.cli.generate:generate", "Continue a prompt."),
    "chat": ("smallgpt.interfaces.cli.chat:chat", "Write a story in turns with a model."),
    "serve": ("smallgpt.interfaces.cli.serve:serve", "Serve a model: OpenAI's API, and a page."),
    "export": ("smallgpt.interfaces.cli.export:export", "Write a model in another tool's format, proved equal."),
    "import": ("smallgpt.interfaces.cli.import_model:import_model", "Take over another tool's model, proved equal."),
    "kernels": ("smallgpt.interfaces.cli.kernels:app", "Show which implementation computes each hot operation."),
    "bench": ("smallgpt.interfaces.cli.bench:app", "Measure speed and memory."),
    "report": ("smallgpt.interfaces.cli.report:report", "Write a run's report as one HTML page."),
    "inspect": ("smallgpt.interfaces.cli.inspect_model:inspect_model", "Look inside a model while it reads a text."),
    "doctor": ("smallgpt.interfaces.cli.doctor:doctor", "Look at this machine, and at a run, for trouble."),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code; arguments default to the process's own."""
    phases.begin_command(phases.process_age() if arguments is None else 0.0)
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):  # a process may be started without them
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    debug = _take_debug(tokens)
    code = errors.guard(lambda: _run(tokens), debug=debug)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: int) -> NoReturn:
    """End a process that torchrun started. Everything is written and closed by now.

    In an interpreter that is being taken down, threads of torch's process groups abort the process now and then, and the
    launcher then takes a finished run for a failed one.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a reader that has left
            stream.flush()
    os._exit(code)


def _run(tokens: list[str]) -> object:
    command = next(iter(tokens), "--help")
    if command not in (*COMMANDS, "--help", "-h", "--version"):
        hint = errors.did_you_mean(command, COMMANDS)
        raise ConfigError(f"unknown command {command!r}{hint}\ncommands: {', '.join(COMMANDS)}")
    return _application(command)(tokens)


def _application(command: str) -> "App":
    from cyclopts import App

    app = App(
        name="smallgpt",
        help=ABOUT,
        help_epilogue=None if command in COMMANDS else FIRST_STEPS,
        help_format="plaintext",
        version=f"smallgpt {__version__}",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        verbose=False,
        result_action="return_value",
    )
    for order, (name, (path, summary)) in enumerate(COMMANDS.items()):
        # The summary stands in the list of commands; a command that is called shows its own docstring instead.
        app.command(path, name=name, help=None if name == command else summary, sort_key=order)
    return app


def _take_debug(tokens: list[str]) -> bool:
    """Remove --debug from wherever it stands before a `--`."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    if "--debug" not in tokens[:end]:
        return False
    tokens[:end] = [token for token in tokens[:end] if token != "--debug"]
    return True
