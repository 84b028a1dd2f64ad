"""The program ``rlkit``: a command's result on the screen. A user's mistake ends with one message and exit code 2."""

from __future__ import annotations

import difflib
import io
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any

from rlkit.cli.commands import COMMANDS
from rlkit.cli.parser import Parser
from rlkit.distribution import VERSION
from rlkit.errors import ConfigError, InputError, RlkitError
from rlkit.reading import shown
from rlkit.stopping import Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Exit codes: 0 done; 1 the run failed; 2 something in the input is wrong; 3 the time limit came first; 128 and the
    number of a signal (130 SIGINT, 143 SIGTERM, 129 SIGHUP): it did. After 3 and a signal a checkpoint is there.
    """
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        return int(arguments.run(arguments))
    except RlkitError as error:
        if os.environ.get("RLKIT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except Stopped as stopped:
        print(f"\n{stopped.why}; {stopped.kept or 'no step was made yet'}.", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("\ninterrupted; a training run continues from its last checkpoint with --resume.", file=sys.stderr)
        return 130


class _Screen(io.FileIO):
    """Output that stops nothing: what cannot be written, because a pipe is closed, a terminal gone or a disk full, is left out."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def entry() -> None:
    """The program: after an interruption it ends without waiting for threads that still generate or score."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        raw = _Screen(old.fileno(), "w", closefd=False)
        by_line = old.line_buffering or name == "stderr"
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), old.encoding, old.errors, line_buffering=by_line))
    code = main()
    if code in (0, 1, 2):
        sys.exit(code)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parse(argv: Sequence[str]) -> Namespace:
    """The arguments of one call.

    Raises:
        ConfigError: an unknown command or option, with the closest one, or a value that an option does not take.
    """
    top = Parser(prog="rlkit", description="KL-regularized RL post-training of language models.")
    top.add_argument("--version", action="version", version=f"rlkit {VERSION}")
    below = top.add_subparsers(required=True, dest="command", metavar="COMMAND")
    commands = {c.name: c.add_to(below) for c in COMMANDS}
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise ConfigError(
            f"there is no command {shown(argv[0])}.{_closest(argv[0], commands)} There are {', '.join(commands)}."
        )
    # argparse wants key=value before the options; people write them after, too
    arguments, rest = top.parse_known_args(argv)
    mine = commands[arguments.command]
    for x in rest:
        if x.startswith("-") and "=" in x and hasattr(arguments, "overrides"):
            mine.error(f"there is no option {shown(x)}; a setting is written without dashes, {shown(x.lstrip('-'))}")
        if x.startswith("-"):
            mine.error(f"there is no option {shown(x)}.{_closest(x.partition('=')[0], mine.flags)}".rstrip("."))
        if "=" not in x or not hasattr(arguments, "overrides"):
            mine.error(f"{shown(x)} is one argument too many")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _closest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:100], list(names), 1)
    return f" Did you mean {near[0]}?" if near else ""
