"""Command-line mechanics: options, their parsers, and how a program ends. Imports no torch.

    python run_llama.py --help
    python run_llama.py --option finetune --help

`parse` reads the command line into the chosen option's settings object (see `tasks.settings`); no
`argparse.Namespace` goes further.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from engine import start
from tasks.options import Option, Program, Work
from tasks.recipe import read_recipe
from tasks.settings import default_of


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """An empty parser that answers a refused flag in one line and shows the defaults in its help.

    From here on a console that cannot show a character shows a question mark instead.
    """
    for console in (sys.stdout, sys.stderr):
        if isinstance(console, io.TextIOWrapper):
            console.reconfigure(errors="replace")
    return _Parser(prog=prog, description=description, formatter_class=_HelpFormatter)


class _Parser(argparse.ArgumentParser):
    """Answers a refused flag in one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses words that are not valid text, such as bytes that are not UTF-8."""
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if any("\ud800" <= character <= "\udfff" for character in word):
                self.error(f"an argument is not valid UTF-8 text: {word[:60]!a}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog.split()[0]}: {message}")
        self.exit(2)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines and adds defaults, but not where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def settings_parser(settings: type, prog: str, description: str) -> argparse.ArgumentParser:
    """The parser of a settings class: one group of flags for each class that it inherits from."""
    parser = new_parser(prog, description)
    parser.usage = f"python {prog} [flags]"
    entries = [entry for entry in dataclasses.fields(settings) if "help" in entry.metadata]
    for owner in settings.__mro__:  # the option's own flags first
        if own := [entry for entry in entries if _first_declaration(settings, entry.name) is owner]:
            group = parser.add_argument_group((owner.__doc__ or "").strip().split("\n")[0])
            for entry in own:
                add_flag(group, entry)
    return parser


def _first_declaration(settings: type, name: str) -> type:
    """The most basic class that declares the field: a subclass may change a default without moving the flag."""
    return next(cls for cls in reversed(settings.__mro__) if name in inspect.get_annotations(cls))


def add_flag(group: Any, entry: dataclasses.Field, hidden: bool = False) -> None:
    """Adds a field's flag to an argparse group; a hidden one is accepted and forgotten."""
    names = entry.metadata["names"] or (f"--{entry.name}",)
    keywords = dict(entry.metadata["keywords"])
    if hidden:
        group.add_argument(*names, dest=entry.name, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **keywords)
        return
    group.add_argument(*names, dest=entry.name, help=entry.metadata["help"], default=default_of(entry), **keywords)


def parse(program: Program, argv: Sequence[str] | None = None) -> tuple[str, Any]:
    """The option and its settings from the command line. Exits with code 2 and one line where it is not understood."""
    words = list(sys.argv[1:] if argv is None else argv)
    overview = overview_parser(program)
    words, recipe = _with_recipe(program, overview, words)
    option, words = _chosen(program, overview, words)
    chosen, task = _of_task(program, option, words)
    settings = chosen.settings_class()
    parser = settings_parser(settings, program.command(option) + task, chosen.summary)
    _add_selector(parser, program)
    _tolerate(parser, program, option, settings)
    names = {entry.name for entry in dataclasses.fields(settings)}
    args, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(_why_unknown(program, option, task, unknown[0]) + recipe)
    given = _given(parser, words) & names
    required = [entry for entry in dataclasses.fields(settings) if entry.metadata.get("required")]
    if missing := [f"--{entry.name}" for entry in required if entry.name not in given]:
        parser.error(f"{program.command(option).removeprefix(program.name).strip()} needs {', '.join(missing)}{recipe}")
    try:
        return option, settings(given=given, **{n: v for n, v in vars(args).items() if n in names})
    except ValueError as error:
        parser.error(f"{error}{recipe}")


def parse_alone(name: str, settings: type, summary: str, argv: Sequence[str] | None = None) -> Any:
    """The settings of a program without options from the command line. Exits with code 2 and one line if it is bad."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = settings_parser(settings, name, summary)
    args, given = parser.parse_args(words), _given(parser, words)
    required = [entry.name for entry in dataclasses.fields(settings) if entry.metadata.get("required")]
    if missing := [f"--{entry}" for entry in required if entry not in given]:
        parser.error(f"{name} needs {', '.join(missing)}")
    return settings(given=given, **vars(args))


def overview_parser(program: Program) -> argparse.ArgumentParser:
    """The parser behind `PROGRAM --help`: it names the options and where each option's flags are explained."""
    tasks = "\n".join(f"  {name:<12} {option.summary}" for name, option in program.options.items())
    more = program.command("NAME")
    parser = new_parser(program.name, f"{program.summary}\n\n{tasks}\n\n`python {more} --help` explains its flags.")
    _add_selector(parser, program, visible=True)
    if program.selector is None:
        parser.add_argument("option", choices=program.options, metavar="NAME", help="what to do")
    return parser


def _add_selector(parser: argparse.ArgumentParser, program: Program, visible: bool = False) -> None:
    if program.selector is not None:
        shown = "what to do" if visible else argparse.SUPPRESS
        parser.add_argument(program.selector, choices=program.options, dest="option", default=program.default,
                            help=shown)  # fmt: skip
    parser.add_argument("--recipe", metavar="FILE", help="read flags from a .toml file; the command line wins")


def _chosen(program: Program, overview: argparse.ArgumentParser, words: list[str]) -> tuple[str, list[str]]:
    """The option that the words choose, and the other words. `--help` before any choice shows the overview."""
    if program.selector is None:
        if not words or words[0] not in program.options:
            overview.parse_args(words[:1] if words and words[0] in ("-h", "--help") else words[:1] or [])
        return words[0], words[1:]
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(program.selector, dest="option", default=None)
    finder.error = overview.error  # type: ignore[method-assign]
    option = finder.parse_known_args(words)[0].option
    if option is None and {"-h", "--help"} & set(words):
        overview.print_help()
        sys.exit(0)
    if option is not None and option not in program.options:
        overview.parse_args([program.selector, option])
    return option or program.default or "", words


def _of_task(program: Program, option: str, words: list[str]) -> tuple[Option, str]:
    """The option as it is with the `--task` in the words, and what names that task if it makes a difference, or ""."""
    chosen = program.options[option]
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--task", nargs="?")
    task = finder.parse_known_args(words)[0].task
    return chosen.of_task(task), f" --task {task}" if task in chosen.by_task else ""


def _tolerate(parser: argparse.ArgumentParser, program: Program, option: str, settings: type) -> None:
    """Lets a lenient option accept the tolerated flags that it does not read."""
    if option not in program.lenient:
        return
    known = {entry.name for entry in dataclasses.fields(settings)}
    for other in program.lenient:
        for entry in dataclasses.fields(program.options[other].settings_class()):
            if entry.name in program.tolerated and entry.name not in known:
                known.add(entry.name)
                add_flag(parser, entry, hidden=True)


def _why_unknown(program: Program, option: str, task: str, word: str) -> str:
    """Names the options that have a flag which this one lacks."""
    name = word.split("=")[0]
    owners = [
        other
        for other, candidate in program.all_options()
        for entry in dataclasses.fields(candidate.settings_class())
        if "help" in entry.metadata and name in (entry.metadata["names"] or (f"--{entry.name}",))
    ]
    chosen = (f"{program.selector} {option}" if program.selector else option) + task
    if owners:
        return f"{name} is not a flag of {chosen}; these have it: {', '.join(owners)}"
    return f"unrecognized argument {word}; see python {program.command(option)}{task} --help"


def _given(parser: argparse.ArgumentParser, words: list[str]) -> frozenset[str]:
    """The names of the flags that stand on the command line."""
    defaults = {action: action.default for action in parser._actions}
    for action in defaults:
        action.default = argparse.SUPPRESS
    given = frozenset(vars(parser.parse_known_args(words)[0]))
    for action, default in defaults.items():
        action.default = default
    return given


def _with_recipe(
    program: Program, overview: argparse.ArgumentParser, words: list[str]
) -> tuple[list[str], str]:
    """The words with those of `--recipe FILE` before them, and what an error adds to name the file."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    path = finder.parse_known_args(words)[0].recipe
    if path is None:
        return words, ""
    try:
        chosen, flags = read_recipe(path, program.name, program.options)
    except (OSError, ValueError) as error:
        overview.error(str(error))
    if program.selector is None:
        rest = words[1:] if words and words[0] in program.options else words
        return [chosen, *flags, *rest], f" (recipe {path})"
    return [program.selector, chosen, *flags, *words], f" (recipe {path})"


def process_count() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def say(line: str, always: bool = False) -> None:
    """One line on stderr. Under torchrun only the first process speaks, unless `always`; the others wait for it.

    torchrun ends all processes as soon as one has ended.
    """
    if always or process_count() == 1 or os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
    else:
        time.sleep(2.0)


def carry_out(program: str, prepare: Callable[[], Work], resumable: bool = False) -> int:
    """Prepares a task, which checks everything, and does its work; returns the exit code.

    Bad input ends in one line and code 2 before any work; a full disk, a damaged file or a loss that is not finite in
    code 1; Ctrl-C in code 130. `resumable`: the line says that `--resume` continues. Any other error is a fault of the
    program, which `engine.start` reports.
    """
    from engine.io import locks  # not before the command line is understood: it takes a moment

    try:
        try:
            work = prepare()
        except (ValueError, OSError) as error:
            say(f"{program}: {error}", always=type(error) is ConnectionError)
            return 2
        except KeyboardInterrupt:
            say("\ninterrupted before any work was done")
            return start.INTERRUPTED
        start.ready()
        return _done(program, work, resumable)
    finally:
        locks.release()
        start.end()


def _done(program: str, work: Work, resumable: bool) -> int:
    """Does the work; returns the exit code."""
    remedy = "; continue with --resume" if resumable else ""
    try:
        work()
    except BrokenPipeError:  # the reader of our output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        more = remedy if isinstance(error, OSError) and "--resume" not in reason else ""
        say(f"{program}: {reason}{more}", always=type(error) is ConnectionError)  # the first process may be gone
        return 1
    except KeyboardInterrupt:
        say(f"\ninterrupted{remedy}")
        return start.INTERRUPTED
    return 0


def _reason(error: Exception) -> str | None:
    """What the user reads of an error that can come from outside the program; None for any other error."""
    from engine.io.files import FileError

    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in first:
        return "there is not enough memory: try a smaller --batch_size or --batch_tokens, or end other programs"
    return str(error) if isinstance(error, OSError | ArithmeticError | FileError) else None
