"""The command line of everything that takes a config: `--config FILE[:ARG]`, then any field by its
dotted path. Errors are one line on stderr, never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from keft_jax.config import Config, KeftError, KnowledgeConfig, from_json, load_config_file

Options = dict[str, list[str]]
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are KeftErrors."""

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            add_help=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--help", "-h", action="store_true", help="show this and leave")
        self.add_argument(
            "--config", metavar="FILE[:ARG]", help="a file with get_config(arg), as in configs/"
        )

    def error(self, message: str) -> NoReturn:
        raise KeftError(f"{message}; see {self.prog} --help")


def parse(parser: Parser, argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """The config with the options of the command line, and the parser's own arguments.

    `--section.field=VALUE` and `--section.field VALUE` are both taken, hyphens stand for
    underscores, and a list is VALUE VALUE. Raises KeftError for an unknown option, a value that
    does not fit, and a missing or broken config file; leaves with 0 after --help.
    """
    own, rest = parser.parse_known_args(list(argv))
    if own.help:
        example = Config(knowledge=KnowledgeConfig(kg="kg.tsv"))
        default = _load(own.config) if own.config else example
        print(f"{parser.format_help()}\n{_describe_fields(default)}")
        raise SystemExit(0)
    if not own.config:
        raise KeftError("--config is missing; give one, for example --config configs/quickstart.py")
    return override(_load(own.config), rest), own


def config_stem(argument: str) -> str:
    """`configs/NAME.py[:ARG]` -> NAME, or NAME-ARG."""
    path, _, arg = argument.partition(":")
    return re.sub(r"[^\w.-]+", "-", Path(path).stem + (f"-{arg}" if arg else ""))


def run_main(main: Callable[[], int]) -> int:
    """Runs a command: a KeftError becomes one line on stderr and its exit code, and leaving by
    control-C is no error message either."""
    try:
        return main()
    except KeftError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def override(config: Config, args: Sequence[str]) -> Config:
    """The config with these options set."""
    values = dataclasses.asdict(config)
    known = dict(_fields(Config))
    for path, given in _options(args).items():
        if path not in known:
            raise KeftError(f"--{path}: no such option ({_nearest(path, known)})")
        *sections, name = path.split(".")
        at = values
        for section in sections:
            at = at[section]
        at[name] = _convert(path, known[path], given)
    return from_json(json.dumps(values), "options")


def _load(argument: str) -> Config:
    """The file's config; whatever goes wrong in it is told with its line."""
    try:
        config = load_config_file(argument)
    except KeftError:
        raise
    except Exception as error:  # the file is the user's own code, and can raise anything
        file = argument.partition(":")[0]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(Path(file))]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 0
        raise KeftError(f"{file}:{line}: {type(error).__name__}: {error}; correct it") from error
    if not isinstance(config, Config):
        raise KeftError(
            f"--config {argument}: get_config gave a {type(config).__name__}; return a "
            "keft_jax.config.Config"
        )
    return config


def _fields(kind: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, type) of every field that is not a section."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{path}{name}.")
        else:
            yield f"{path}{name}", hint


def _options(args: Sequence[str]) -> Options:
    """Values by dotted path; the last mention of an option holds."""
    out: Options = {}
    path = ""
    for token in args:
        if token.startswith("--"):
            path, equals, value = token[2:].partition("=")
            path = path.replace("-", "_")
            out[path] = [value] if equals else []
        elif path:
            out[path].append(token)
        else:
            raise KeftError(f"{token!r}: not an option; options look like --optim.steps=100")
    return out


def _nearest(path: str, known: dict[str, Any]) -> str:
    sections = {p.rpartition(".")[0] for p in known} - {""}
    if path in sections:
        inside = [p for p in known if p.rpartition(".")[0] == path]
        return f"it is a section; its fields are {', '.join(inside)}"
    # A name without its section, or in the wrong one, is as likely as a misspelt path.
    leaf = path.rpartition(".")[2]
    near = [p for p in known if p.rpartition(".")[2] == leaf]
    near += difflib.get_close_matches(path, known, 2, 0.7)
    if not near:
        leaves = {p.rpartition(".")[2]: p for p in known}
        near = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, 2, 0.6)]
    if not near:
        return "--help lists them all"
    return f"did you mean {' or '.join(f'--{p}' for p in dict.fromkeys(near[:3]))}?"


def _convert(path: str, hint: Any, given: list[str]) -> Any:
    """Values of an option as `from_json` reads them."""
    if typing.get_origin(hint) is tuple:
        (item, _) = typing.get_args(hint)
        if dataclasses.is_dataclass(item):
            raise KeftError(f"--{path}: a list of sections; set it in the config file")
        return [_one(path, item, text) for text in given]
    if len(given) != 1:
        shown = " ".join(given) or "nothing"
        raise KeftError(f"--{path}: expected one value, {_expected(hint)}; got {shown}")
    return _one(path, hint, given[0])


def _one(path: str, hint: Any, text: str) -> Any:
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint in (int, float):
            return hint(text)
    except (ValueError, KeyError):
        raise KeftError(f"--{path} = {text!r}: expected {_expected(hint)}") from None
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    if choices and text not in choices:
        near = difflib.get_close_matches(text, choices, 1)
        hint_text = f" (did you mean {near[0]}?)" if near else ""
        raise KeftError(f"--{path} = {text!r}: expected {_expected(hint)}{hint_text}")
    return text


def _expected(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return KINDS[hint]


def _describe_fields(default: Config) -> str:
    """Every field with its type, meaning and value here."""
    import tyro

    # Sections in a list have no option of their own.
    default = dataclasses.replace(default, optim=dataclasses.replace(default.optim, groups=()))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        tyro.cli(
            Config,
            description="",
            args=["--help"],
            default=default,
            config=(tyro.conf.FlagConversionOff,),
            use_underscores=True,
        )
    text = out.getvalue().partition("[OPTIONS]")[2].lstrip("\n")
    return f"every field of the config is an option:\n\n{text}"
