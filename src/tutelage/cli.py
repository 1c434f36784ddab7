"""The command line. It parses first and imports torch afterwards, so help and mistakes come at once."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from tutelage.arguments import parser
from tutelage.errors import InputError, Stopped, TutelageError
from tutelage.redaction import redacted_text
from tutelage.training.quiet import quiet_quantisers
from tutelage.training.signals import Abandoned, listening
from tutelage.world import joined, leave

if TYPE_CHECKING:
    from tutelage.recipe import Recipe


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    options: argparse.Namespace
    keys: list[tuple[str, ...]]
    """The recipe keys that were given, each with its value, still as words."""

    def overrides(self, without: str = "") -> list[str]:
        """The recipe keys as one list of words, without those that begin with `without`."""
        return [word for key in self.keys if not (without and key[0].startswith(without)) for word in key]

    def under(self, prefix: str) -> list[str]:
        """The words of the keys that begin with a prefix."""
        return [word for key in self.keys if key[0].startswith(prefix) for word in key]


def command_line() -> NoReturn:
    """The command `tutelage`, a process of its own."""
    leave(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    # Threads that wait for each other by spinning starve those that work as soon as the machine is shared:
    # beside one busy process, steps of a 4 × 256 model took half as long again by default. Torch's OpenMP reads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Large tensors begin at a page. Else glibc cuts an edge off each block, small objects settle there, and the hole is
    # too small for the next one: a run that trained an adapter took 1.8 times as much memory. Torch reads it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    sys.excepthook = _print_without_secrets
    quiet_quantisers()
    for stream in (sys.stdout, sys.stderr):  # names of files and text of models hold what a console may not know
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with listening() as stop, stop.abandonable():
            command = parse(sys.argv[1:] if arguments is None else list(arguments))
            _VERBS[command.options.verb](command)
    except Abandoned:
        print("tutelage: stopped; the same command begins again", file=sys.stderr)
        return Stopped.exit_status
    except TutelageError as error:
        print(f"tutelage{_process()}: {redacted_text(str(error))}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _process() -> str:
    """Which process of a run of several speaks; nothing for the first one."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" (process {rank})"


def _print_without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redacted_text("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def parse(arguments: Sequence[str]) -> Command:
    """Split a command line into the options of its verb and the keys of its recipe."""
    own, keys = _apart(list(arguments)) if arguments[:1] not in (["demo"], ["compare"]) else (list(arguments), [])
    return Command(parser().parse_args(own), keys)


def _apart(arguments: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Tell a verb's own options from recipe keys: a key has a dot in it, or is `--seed` or `--output`."""
    own: list[str] = []
    keys: list[tuple[str, ...]] = []
    words = iter(arguments)
    pending = next(words, None)
    while pending is not None:
        word, pending = pending, next(words, None)
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and ("." in name or name in ("--seed", "--output"))):
            own.append(word)
        elif equals or pending is None or pending.startswith("--"):
            keys.append((word,))
        else:
            keys.append((word, pending))
            pending = next(words, None)
    return own, keys


def _recipe(command: Command, without: str = "") -> "Recipe":
    """The recipe of the command line; its mistakes are told before transformers is imported."""
    from tutelage.recipe import load_recipe

    recipe = load_recipe(command.options.recipe, command.overrides(without))
    _quiet()
    return recipe


def _quiet() -> None:
    from tutelage.training.quiet import quiet_transformers

    quiet_transformers()


def _train(command: Command) -> None:
    recipe = _recipe(command)
    from tutelage.training.run import train

    options = command.options
    with joined() as everyone:
        run = train(
            recipe,
            resume=options.resume,
            allow_change=[key for key in options.allow_change.replace("-", "_").split(",") if key],
            reset_optimizer=options.reset_optimizer,
            verify=not options.no_verify,
        )
        if not everyone.is_main:
            return
    report = f", report in {run.report}" if run.report.exists() else ""
    print(f"finished: model in {run.model}, figures in {run.folder / 'metrics.jsonl'}{report}")


def _generate(command: Command) -> None:
    recipe, settings = _recipe(command, without="--decoding."), _section(command, "decoding")
    from tutelage.commands.generate import generate

    options = command.options
    generate(recipe, settings, by=options.by, rows=options.rows, out=options.out)


def _check(command: Command) -> None:
    recipe = _recipe(command)
    from tutelage.commands.check import check

    check(recipe, two_steps=command.options.dry_run)


def _evaluate(command: Command) -> None:
    from tutelage.commands.evaluate import evaluate, list_tasks

    options = command.options
    if options.list:
        list_tasks()
        return
    if not options.subjects or not options.tasks:
        raise InputError("evaluate needs RUN_OR_MODEL and --tasks; --list shows the tasks")
    _quiet()
    evaluate(
        options.subjects,
        options.tasks.split(","),
        task_keys=[word for key in command.keys if not key[0].startswith(_OF_MODELS) for word in key],
        student_keys=_section(command, "student"),
        teacher_keys=_section(command, "teacher"),
        seeds=options.seeds,
        data_folder=options.data_folder,
        out=options.out,
    )


_OF_MODELS = ("--student.", "--teacher.")


def _section(command: Command, name: str) -> dict[str, Any]:
    """The keys of one section that were given, with their values."""
    from tutelage.recipe import split_overrides

    return {key.removeprefix(f"{name}."): value for key, value in split_overrides(command.under(f"--{name}."))}


def _compare(command: Command) -> None:
    from tutelage.commands.compare import compare

    options = command.options
    compare(
        options.folders,
        tasks=options.tasks.split(",") if options.tasks else None,
        baseline=options.baseline,
        pairs=options.pairs,
        fail_if=options.fail_if,
        style=options.format,
        out=options.out,
    )


def _study(command: Command) -> None:
    from tutelage.commands.study import study

    options = command.options
    study(
        options.study,
        overrides=command.overrides(),
        folder=options.folder,
        seeds=options.seeds,
        shard=options.shard,
        collect_only=options.collect,
        dry_run=options.dry_run,
    )


def _cache(command: Command) -> None:
    recipe = _recipe(command)
    from tutelage.commands.cache import cache

    cache(recipe)


def _report(command: Command) -> None:
    from tutelage.commands.report import report

    options = command.options
    if options.teacher:
        _quiet()
    report(options.folders, teacher=options.teacher, out=options.out, show=options.open)


def _try(command: Command) -> None:
    _quiet()
    from tutelage.commands.try_out import try_out

    options = command.options
    settings = _section(command, "decoding")
    keys = command.overrides(without="--decoding.")
    try_out(options.run, options.prompt, teacher=options.teacher, samples=options.samples, settings=settings, keys=keys)


def _schema(command: Command) -> None:
    from tutelage.commands.schema import write_schema

    write_schema(command.options.out)


def _export(command: Command) -> None:
    _quiet()
    from tutelage.commands.export import export_gguf

    options = command.options
    export_gguf(options.run, converter=options.converter, out=options.out, outtype=options.outtype)


def _push(command: Command) -> None:
    from tutelage.commands.push import push

    push(command.options.run, command.options.repo_id, private=command.options.private)


def _demo(command: Command) -> None:
    _quiet()
    from tutelage.demo.run import run_demo

    options = command.options
    run_demo(options.folder, options.seed, prepare_only=options.prepare, control=options.control)


_VERBS = {
    "train": _train,
    "generate": _generate,
    "check": _check,
    "cache": _cache,
    "compare": _compare,
    "study": _study,
    "evaluate": _evaluate,
    "report": _report,
    "try": _try,
    "schema": _schema,
    "export": _export,
    "push": _push,
    "demo": _demo,
}
