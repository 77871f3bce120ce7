"""What the command lines share: flags made of a dataclass, errors of one line, exit statuses.

Help and refusals come at once: nothing here needs torch.
"""

import argparse
import contextlib
import dataclasses
import difflib
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from mini_llama.bounds import Range, UsageError, check_usage
from mini_llama.standard_streams import flushed_output, prepare_streams, silence


class OneLineParser(argparse.ArgumentParser):
    """argparse, with errors of one line and exit status 2. Dashes and underscores in flags are
    the same, and a flag that does not exist is answered with the nearest that does.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {visible(message)} (see --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own ignores a full disk and a closed pipe."""
        (file or sys.stderr).write(message)

    def parse_known_args(  # type: ignore[override]  # argparse's stub has three overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = sys.argv[1:] if args is None else list(args)
        end = given.index("--") if "--" in given else len(given)
        spelt = {_plain(flag): flag for flag in self._option_string_actions}
        for place, word in enumerate(given[:end]):
            flag, equals, value = word.partition("=")
            if flag.startswith("--"):
                given[place] = spelt.get(_plain(flag), flag) + equals + value
        return super().parse_known_args(given, namespace)

    def parse_args(  # type: ignore[override]  # as above
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._nearest(unknown)}")
        return parsed

    def _nearest(self, unknown: Sequence[str]) -> str:
        """ "; did you mean --epochs?", or nothing where no flag is near."""
        flags = {_plain(flag): flag for flag in self.all_flags()}
        for word in unknown:
            flag = _plain(word.partition("=")[0])
            near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)
            near = near or [known for known in flags if len(flag) > 3 and known.startswith(flag)]
            if word.startswith("--") and near:
                return f"; did you mean {flags[near[0]]}?"
        return ""

    def all_flags(self) -> set[str]:
        """Its own long flags, and those of its subcommands."""
        parsers: list[argparse.ArgumentParser] = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
        flags = {flag for parser in parsers for flag in parser._option_string_actions}
        return {flag for flag in flags if flag.startswith("--")}


def _plain(flag: str) -> str:
    """A flag's name with dashes for underscores."""
    return flag.replace("_", "-")


def argument(
    default: Any = dataclasses.MISSING,
    text: str = "",
    *,
    flag: str | None = None,
    choices: Sequence[str] | None = None,
    nargs: str | None = None,
    metavar: str | None = None,
    shown: str | None = None,
) -> Any:
    """A dataclass field that is a command-line option, with `text` as its help.

    The field's type is that of the value; a tuple without `nargs` is a comma-separated list. A
    default of False makes a switch, no default a required option. `flag` is the flag's name if it
    differs from the field's, `shown` the default as the help prints it if that differs.
    """
    metadata = {"text": text, "flag": flag, "choices": choices, "nargs": nargs}
    metadata |= {"metavar": metavar, "shown": shown}
    return dataclasses.field(default=default, metadata=metadata)


def number(default: Any, text: str, within: Range, **others: Any) -> Any:
    """`argument` for a number; check_ranges holds it to its range."""
    metadata = argument(default, text, **others).metadata
    return dataclasses.field(default=default, metadata={**metadata, "within": within})


def argument_of(owner: type, name: str, **changes: Any) -> Any:
    """The option `name` of `owner` again; `changes` are arguments of `argument` or `number`."""
    field = _field(owner, name)
    default = changes.pop("default", field.default)
    return dataclasses.field(default=default, metadata={**field.metadata, **changes})


def make_parser(
    program: str, description: str, options: type, show: Callable[[Any], str] = str
) -> OneLineParser:
    """A parser with a flag for every field of the dataclass `options`; `show` formats defaults.

    The parsed namespace has only the options that were given: defaults are the dataclass's.
    """
    parser = OneLineParser(
        prog=program,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add_flags(parser, options, show)
    return parser


def add_flags(
    parser: argparse.ArgumentParser, options: type, show: Callable[[Any], str] = str
) -> None:
    """Give a parser make_parser's flags; its argument_default must be argparse.SUPPRESS."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        text, flag = field.metadata["text"], flag_of(options, field.name)
        if field.default is False:
            parser.add_argument(flag, dest=field.name, action="store_true", help=text)
            continue
        choices, nargs = field.metadata["choices"], field.metadata["nargs"]
        parser.add_argument(
            flag,
            dest=field.name,
            type=_value_type(hints[field.name], nargs),
            required=field.default is dataclasses.MISSING,
            choices=choices,
            nargs=nargs,
            metavar=None if choices else field.metadata["metavar"] or field.name.upper(),
            help=text + _shown_default(field, show),
        )


def flag_of(options: type, name: str) -> str:
    """The flag of a field: --lr, or --label-names for label_names."""
    return f"--{_field(options, name).metadata['flag'] or name}"


def parse_given(parser: OneLineParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """The options given on the command line, by name; several values of one are a tuple."""
    given = vars(parser.parse_args(argv)).items()
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given}


def check_option(options: object, name: str, holds: bool, bound: str) -> None:
    """Raise UsageError, naming flag, value and `bound`, unless `holds`."""
    check_usage(f"--{name} {getattr(options, name)}", holds, bound)


def check_ranges(options: Any) -> None:
    """Raise UsageError, naming flag, value and bound, for the first number out of its range."""
    for field in dataclasses.fields(options):
        value, within = getattr(options, field.name), field.metadata.get("within")
        if value is not None and within is not None:
            given = f"{flag_of(type(options), field.name)} {value}"
            check_usage(given, value in within, str(within))


def _field(owner: type, name: str) -> dataclasses.Field[Any]:
    return next(field for field in dataclasses.fields(owner) if field.name == name)


def _value_type(hint: Any, nargs: str | None) -> Callable[[str], Any]:
    """int | None → int; tuple[str, ...] → str where a flag takes several, else split_names."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if typing.get_origin(hint) is None:
        return hint
    return typing.get_args(hint)[0] if nargs else split_names


def _shown_default(field: dataclasses.Field, show: Callable[[Any], str]) -> str:
    shown, default = field.metadata["shown"], field.default
    if shown is None:
        if default in (dataclasses.MISSING, None, "", ()):
            return ""
        shown = ",".join(default) if isinstance(default, tuple) else show(default)
    return f" (default: {shown})"


def split_names(text: str) -> tuple[str, ...]:
    """ "a, b" → ("a", "b")."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn errors that a user can fix into one line on standard error and exit status 1, a wrong
    command line into status 2, Ctrl-C into 130. It is a decorator as well, for a command's main.
    MINI_LLAMA_TRACEBACK in the environment shows tracebacks instead.
    """
    prepare_streams()
    if not _has_working_directory():  # libraries under torch end the process without it
        gone = "the working directory does not exist any more: change to one that does"
        sys.exit(f"{program}: error: {gone}")
    if os.environ.get("MINI_LLAMA_TRACEBACK"):
        yield
        return
    try:
        with flushed_output():
            yield
    except BrokenPipeError:  # our output's reader closed the pipe: no message, also none at exit
        silence(sys.stdout)
        sys.exit(141)
    except UsageError as error:
        print(f"{program}: error: {visible(describe(error))}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        sys.exit(f"{program}: error: {visible(describe(error))}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "lower --batch_size, or cut long texts (--max_sentence_len, --context)"
        sys.exit(f"{program}: error: out of memory: {remedy}")
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is of a lack of memory, on the CPU or on a GPU."""
    message = str(error)
    is_lack = "memory" in message and "illegal memory access" not in message  # CUDA has both
    return isinstance(error, MemoryError) or is_lack


def describe(error: Exception) -> str:
    """One line, also for an OSError that the system raised."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return f"standard output, or a file: {error.strerror}"
    return " ".join(str(error).split())


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def visible(text: str, kept: str = "") -> str:
    """The text with control and direction characters escaped, except those in `kept`."""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)
