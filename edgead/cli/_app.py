"""The application, how a command is declared, and the one place where an exception becomes a line and an exit code."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, NoReturn, ParamSpec, get_type_hints

import typer

from edgead.cli.terminal.completion import Root, Shell, completion_script

if TYPE_CHECKING:
    from edgead.cli._output import Output

DONE, INTERNAL, WRONG_INPUT, CHECK_FAILED, RUN_FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 130

_NARROWEST = 20  # columns of a terminal
# Columns from which on help stands in frames, which cut the names of options in fewer; of a long option: more.
_FRAMED, _FRAMED_OF = 80, {"fit": 104}

_Arguments = ParamSpec("_Arguments")
_JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
_VerboseFlag = Annotated[bool, typer.Option("--verbose", help="Show the traceback where something goes wrong.")]
_TrustOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Open only bundles that a key of this file has signed (edgead keygen, sign).",
        show_default="$EDGEAD_TRUST",
    ),
]

# typer makes no public name of it, and takes it from another package in each of its versions.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="edgead",
    cls=Root,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
    # Short names, so that each command stands on one line of 40 columns.
    help="""Anomaly detection from normal images to decisions on the line.

First, with images of good parts in parts/cap/train/good and a camera:

\b
edgead fit parts/cap -o cap.model
edgead export cap.model -o cap.edgead
edgead run cap.edgead --source 0
""",
)


def command(
    name: str, *, example: str, panel: str, trusts: bool = False
) -> Callable[[Callable[Concatenate[Output, _Arguments], None]], Callable[Concatenate[Output, _Arguments], None]]:
    """Register ``function(out, ...)`` as a verb, and give it ``--json`` and ``--verbose``.

    Args:
        name: of the verb.
        example: one line that can be typed as it is, shown at the end of its help.
        panel: heading under which ``edgead --help`` lists it.
        trusts: it opens bundles of others and takes ``--trust``. The rest makes its bundles by itself, from what a
            signature does not cover, so that ``$EDGEAD_TRUST`` does not hold there.
    """

    def register(
        function: Callable[Concatenate[Output, _Arguments], None],
    ) -> Callable[Concatenate[Output, _Arguments], None]:
        def call(**arguments: Any) -> None:
            from edgead.cli._output import Output

            arguments.pop("verbose")  # `main` reads it, for it must know before the arguments are parsed
            with Output(as_json=arguments.pop("json_output")) as out, _trusted(arguments.pop("trust", None), trusts):
                function(out, **arguments)  # type: ignore[call-arg]  # typer keeps to the signature below

        # Without `out`, whose type would need rich; evaluated, because typer looks at the types.
        hints = get_type_hints(function, localns={"Output": object}, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        flags = (("json_output", _JsonFlag), ("verbose", _VerboseFlag))
        signature = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        keyword = inspect.Parameter.KEYWORD_ONLY
        if trusts:
            signature.append(inspect.Parameter("trust", keyword, default=None, annotation=_TrustOption))
        for flag, annotation in flags:
            signature.append(inspect.Parameter(flag, keyword, default=False, annotation=annotation))
        call.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
        call.__doc__ = function.__doc__
        app.command(name, epilog=f"Example: {example}", rich_help_panel=panel)(call)
        return function

    return register


@contextmanager
def _trusted(given: Path | None, trusts: bool) -> Iterator[None]:
    chosen = given if given is not None else Path(os.environ.get("EDGEAD_TRUST") or "")
    if chosen == Path():
        yield  # nothing is asked for; what verifies signatures is not even loaded
        return
    from edgead.runtime.bundle.trust import trusting

    with trusting(chosen if trusts else None):
        yield


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    _open_closed_streams()
    _forget_impossible_width()
    sys.exit(run(sys.argv[1:]))


def _open_closed_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr somewhere to write: nowhere.

    Otherwise the next file that is opened, such as a bundle, would take their number, and a library's remark its place.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


def _forget_impossible_width() -> None:
    """Drop a ``COLUMNS`` that is no width, or one in which nothing can be read: some terminals and containers say 0."""
    width = os.environ.get("COLUMNS")
    if width is not None and not (width.isdecimal() and int(width) >= _NARROWEST):
        del os.environ["COLUMNS"]


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    0: done; 2: wrong input or environment, one line on stderr; 3: a check did not hold; 4: what ran in order failed
    later, as a camera that is lost, and may be tried again; 1: a defect of edgead; 130: Ctrl-C.
    """
    verbose = "--verbose" in arguments
    _fit_help(next(iter(arguments), ""))
    if not verbose and not sys.warnoptions:
        # Remarks of libraries to their callers, which would stand between people and the one line that matters.
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        # A console that lacks a character gets a substitute, never a traceback.
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(list(arguments), prog_name="edgead", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the last stop; each is turned into a line and a code
        return _explain(error, verbose)
    return code if isinstance(code, int) else DONE


def _fit_help(verb: str) -> None:
    columns = max(shutil.get_terminal_size().columns, _NARROWEST)  # 80 where nobody says
    app.rich_markup_mode = "rich" if columns >= _FRAMED_OF.get(verb, _FRAMED) else None
    app.info.context_settings = {**_CONTEXT, "terminal_width": columns}


def _explain(error: BaseException, verbose: bool) -> int:
    if isinstance(error, SystemExit):  # a shell that completes a word is among those, and waits
        return error.code if isinstance(error.code, int) else INTERNAL
    from edgead.runtime.errors import BudgetError, EdgeadError, ParityError, SourceLost, StreamFailed

    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has gone; what is left of it must not fail once more when Python ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERNAL
    if isinstance(error, _UsageError):
        context, message = getattr(error, "ctx", None), error.format_message()  # type: ignore[attr-defined]
        hint = f" See '{context.command_path} --help'." if context is not None else ""
        line, code = message + ("" if message.endswith((".", "?")) else ".") + hint, WRONG_INPUT
    elif isinstance(error, EdgeadError):
        line, code = str(error), WRONG_INPUT
        if isinstance(error, ParityError | BudgetError):
            code = CHECK_FAILED
        elif isinstance(error, SourceLost | StreamFailed):
            code = RUN_FAILED
    elif isinstance(error, OSError):
        # What a file system refuses is not for the user to report, wherever it came up.
        where = f"cannot use {error.filename}" if error.filename else "the system refused a file"
        line, code = f"{where}: {error.strerror or error}", WRONG_INPUT
    elif isinstance(error, MemoryError):
        line, code = "not enough memory; close other programs, or use smaller images or settings", WRONG_INPUT
    else:
        what = f"internal error ({type(error).__name__}: {error})"
        line, code = f"{what}; run again with --verbose and report it", INTERNAL
    if verbose:
        _say("".join(traceback.format_exception(error)).rstrip())
    _say("Error: " + " ".join(line.split()))
    return code


def _say(text: str) -> None:
    from edgead.runtime.uri import redact

    with suppress(OSError, ValueError):
        print(redact(text), file=sys.stderr)


def _show_version(wanted: bool) -> None:
    if wanted:
        from edgead.runtime.version import __version__

        typer.echo(f"edgead {__version__}")
        raise typer.Exit


def _show_completion(shell: Shell | None) -> None:
    if shell is not None:
        typer.echo(completion_script(shell))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - done by its callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    completion_for: Annotated[  # noqa: ARG001 - done by its callback
        Shell | None,
        typer.Option(
            "--show-completion",
            metavar="SHELL",
            callback=_show_completion,
            is_eager=True,
            help="Print what bash, zsh, fish or powershell loads to complete commands and options.",
            show_default=False,
        ),
    ] = None,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG_INPUT)
