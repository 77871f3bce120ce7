"""The limited side of chat templates: renders a Jinja template that came with a model.

It is run as a script, in a process of its own, since such a template is code from outside: Jinja's
sandbox keeps it from everything but its variables, and limits of the system bound its memory and
computing time. Its first line of input has the template and the limits, every further one the
variables to render it with; each is answered with one line, {"text"} or {"kind", "message"}.
"""

import contextlib
import importlib.metadata
import json
import math
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.sandbox

SAFE_JINJA = (3, 1, 6)  # older ones have known ways out of their sandbox
LONGEST_MESSAGE = 400  # characters


class Raised(jinja2.TemplateError):
    """The template itself called raise_exception."""


class TooLongError(Exception):
    """The text has more characters than are allowed."""


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Refuses an unsafe attribute at once; the base class refuses what is done with it."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        name = type(obj).__name__
        raise jinja2.exceptions.SecurityError(f"{attribute!r} of {name!r} is not safe")


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace(), without names of Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that self= is a name like any other
        itself, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(itself, values)

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace.check(name)  # an attribute of self is one of its values
        super().__setitem__(name, value)

    @staticmethod
    def check(name: object) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"{name!r} is no name for a namespace")


class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}, which marks an answer for training."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


def make_environment() -> Sandbox:
    """As transformers sets it up for chat templates."""
    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.globals["namespace"] = Namespace
    return environment


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's own escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: object) -> None:
    raise Raised(str(message))


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def limit_process(memory_bytes: int) -> None:
    """Bound memory, and forbid to write files and to start processes, where the system can."""
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        bounds = [(name, memory_bytes) for name in ("AS", "DATA")]
        bounds += [(name, 0) for name in ("CORE", "FSIZE", "NPROC")]
        for name, bound in bounds:
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            with contextlib.suppress(ValueError, OSError):  # macOS refuses some
                resource.setrlimit(kind, (bound, bound))


def limit_time(seconds: int) -> None:
    """The system kills the process when it has computed for `seconds` more."""
    with contextlib.suppress(ImportError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        bound = math.ceil(usage.ru_utime + usage.ru_stime) + seconds
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (bound, hard))


def render(template: jinja2.Template, variables: dict[str, Any], most: int) -> str:
    """The text, of at most `most` characters. Raises TooLongError, and what the template raises."""
    pieces, count = [], 0
    for piece in template.generate(**variables):
        count += len(piece)
        if count > most:
            raise TooLongError(f"more than {most} characters")
        pieces.append(piece)
    return "".join(pieces)


def kind_of(error: Exception) -> str:
    """What went wrong, for the process that asked."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return "syntax"
    names = [
        (Raised, "raised"),
        (jinja2.exceptions.SecurityError, "security"),
        (TooLongError, "length"),
        (MemoryError, "memory"),
        (RecursionError, "recursion"),
    ]
    return next((name for kind, name in names if isinstance(error, kind)), "error")


def message_of(error: Exception) -> str:
    text = str(error)
    if isinstance(error, jinja2.TemplateSyntaxError):
        text = f"line {error.lineno}: {error.message}"
    elif not text or not isinstance(error, jinja2.TemplateError | TooLongError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"


def send(**content: str) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def check_jinja() -> None:
    """Raise ValueError for a Jinja whose sandbox is known to be open."""
    version = importlib.metadata.version("jinja2")
    parts = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    if parts < SAFE_JINJA:
        raise ValueError(f"jinja2 {version} has an unsafe sandbox: pip install 'jinja2>=3.1.6'")


def main() -> None:
    """Answer every line of input, to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    first = json.loads(sys.stdin.readline())
    template = None
    try:
        check_jinja()
        environment = make_environment()
        limit_process(first["memory_bytes"])
        limit_time(first["seconds"])
        template = environment.from_string(first["source"])
        send(text="")
    except Exception as error:  # whatever the template does, it is said in one line
        send(kind=kind_of(error), message=message_of(error))
    for line in sys.stdin:
        limit_time(first["seconds"])
        try:
            assert template is not None
            send(text=render(template, json.loads(line), first["most"]))
        except Exception as error:
            send(kind=kind_of(error), message=message_of(error))


if __name__ == "__main__":
    main()
