"""Command lines, by tyro: `--config FILE[:ARG]` gives the defaults, every field of the config is an
option by its dotted path, and an error is one line on stderr, never a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import os
import re
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from keft_jax.config import Config, FusionConfig, KeftError, KnowledgeConfig
from keft_jax.memory import keep_freed_memory

T = TypeVar("T")

ConfigOptions = Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
"""A config as a field of a command: its options stand without a prefix, booleans take a value."""


def parse(command: Callable[..., T], argv: Sequence[str], *, prog: str, default: Any = None) -> T:
    """Calls `command` (a function or a dataclass) with the options of argv. Raises KeftError for an
    unknown option or a value that does not fit; leaves with 0 after --help."""
    told = io.StringIO()

    def call() -> T:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                command,
                prog=prog,
                args=[_underscored(a) for a in argv],
                default=default,
                use_underscores=True,
                config=(tyro.conf.AvoidSubcommands,),
            )

    try:
        return call()
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
    # Once more in a window so wide that no path is broken over two lines.
    told.truncate(told.seek(0))
    before = dict(os.environ)
    os.environ["COLUMNS"] = "1000"
    try:
        with contextlib.suppress(SystemExit):
            call()
    finally:
        os.environ.clear()
        os.environ.update(before)
    raise KeftError(_one_line(told.getvalue(), prog))


def override(config: Config, argv: Sequence[str]) -> Config:
    """The config with these options set."""

    @dataclass(frozen=True)
    class Options:
        config: ConfigOptions

    return parse(Options, argv, prog="keft", default=Options(config)).config


def take_config(argv: Sequence[str]) -> tuple[str, Config, list[str]]:
    """(`--config`'s value, its config, the other options). Raises KeftError."""
    rest, spec = [], ""
    words = iter(argv)
    for word in words:
        if word == "--config":
            spec = next(words, "")
        elif word.startswith("--config="):
            spec = word.partition("=")[2]
        else:
            rest.append(word)
    if spec:
        return spec, load_config(spec), rest
    if {"--help", "-h"} & set(argv):
        shown = Config(knowledge=KnowledgeConfig(kg="FILE"), fusion=FusionConfig(kind="none"))
        return "", shown, rest
    raise KeftError("--config: missing; give one, for example --config configs/quickstart.py")


def load_config_file(spec: str) -> Config:
    """`configs/NAME.py[:ARG]` -> its get_config(ARG)."""
    path, _, arg = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(
            file.name, [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else [], 1
        )
        hint = f"did you mean {file.parent / near[0]}?" if near else "give the path of a .py file"
        raise KeftError(f"--config {path}: no such file; {hint}")
    module_spec = importlib.util.spec_from_file_location(f"keft_config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise KeftError(f"--config {path}: not a Python file; give the path of a .py file")
    module: types.ModuleType = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise KeftError(f"--config {path}: has no get_config(arg); define one that gives a Config")
    return module.get_config(arg) if arg else module.get_config()


def load_config(spec: str) -> Config:
    """The file's config; whatever goes wrong in it is told with its line."""
    try:
        config = load_config_file(spec)
    except KeftError:
        raise
    except Exception as error:  # the file is the user's own code, and can raise anything
        file = spec.partition(":")[0]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(Path(file))]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 0
        raise KeftError(f"{file}:{line}: {type(error).__name__}: {error}; correct it") from error
    if not isinstance(config, Config):
        raise KeftError(
            f"--config {spec}: get_config gave a {type(config).__name__}; return a "
            "keft_jax.config.Config"
        )
    return config


def with_examples(spec: str, config: Config, number: str) -> Config:
    """The config with so many training examples to draw (`all`: all). Where the argument of a
    config file is that number (`configs/sst2.py:300` or `:300,frozen`), the file is asked anew, so
    that its steps and its selection split fit; else data.draw alone changes. Raises KeftError."""
    if not (number == "all" or (number.isdecimal() and int(number) > 0)):
        raise KeftError(f"--examples {number}: give numbers of examples and all, as 32,100,all")
    draw = 0 if number == "all" else int(number)
    path, _, arg = spec.partition(":")
    first, comma, rest = arg.partition(",")
    if not first or first == "all" or first.isdecimal():
        asked = load_config(f"{path}:{number}{comma}{rest}")
        if asked.data.draw == draw:
            return asked
    return dataclasses.replace(config, data=dataclasses.replace(config.data, draw=draw))


def config_stem(spec: str) -> str:
    """`configs/NAME.py[:ARG]` -> NAME, or NAME-ARG."""
    path, _, arg = spec.partition(":")
    return re.sub(r"[^\w.-]+", "-", Path(path).stem + (f"-{arg}" if arg else ""))


def run_main(main: Callable[[], int]) -> int:
    """Runs a command: a KeftError becomes one line on stderr and its exit code, and leaving by
    control-C, or by a reader of the output that has enough (`keft ... | head`), is no error message
    either."""
    keep_freed_memory()
    try:
        try:
            return main()
        except KeftError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("interrupted; the same command continues", file=sys.stderr)
            return 130
        finally:
            sys.stdout.flush()  # a reader that is gone shows here, not at the interpreter's end
    except BrokenPipeError:
        # What is left in the buffer goes nowhere: https://docs.python.org/3/library/signal.html
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _underscored(word: str) -> str:
    """Hyphens in an option's name stand for underscores."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _one_line(told: str, prog: str) -> str:
    """tyro's boxed message: its first paragraph, the nearest option, where the help is."""
    lines = [re.sub(r"[│╭╮╰╯]", "", line).replace("─", "-").strip() for line in told.splitlines()]
    lines = [line for line in lines if line]
    rules = [i for i, line in enumerate(lines) if i and set(line) == {"-"}]
    start = 2 if rules[:1] == [1] else 1  # the title is ruled off, or stands in the box's frame
    message = " ".join(lines[start : next((i for i in rules if i > start), len(lines))])
    # "Error parsing config.optim: optim.steps = -1: ..." names the path and the remedy itself.
    message = re.sub(r"^Error parsing \S+: (?=\S+ = )", "", message)
    message = re.sub(
        r"invalid literal for int\S* with base 10: (.+)", r"\1 is no whole number", message
    )
    message = re.sub(r"could not convert string to float: (.+)", r"\1 is no number", message)
    unknown = re.match(r"Unrecognized options: --([\w.]+)", message)
    hint = f"; did you mean --{near}?" if unknown and (near := _nearest(unknown[1])) else ""
    return f"{message.rstrip('.')}{hint} (see {prog} --help)"


def _nearest(path: str) -> str:
    """The field of a config that was meant: one of this name in another section, or spelt alike."""
    known = list(_paths(Config))
    inside = [p for p in known if p.startswith(f"{path}.")]
    leaf = [p for p in known if p.rpartition(".")[2] == path.rpartition(".")[2]]
    return next(iter(leaf + inside + difflib.get_close_matches(path, known, 1, 0.7)), "")


def _paths(kind: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields that are not sections."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _paths(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
