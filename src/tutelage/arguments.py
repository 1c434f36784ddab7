"""The verbs of the command line with their options, and what `--help` says of them."""

import argparse
from collections.abc import Callable

_TEXT = argparse.RawDescriptionHelpFormatter
Verb = Callable[..., argparse.ArgumentParser]

MAIN = """\
Teach a small language model what a large one knows.

  tutelage demo                       distil an embedded task three ways; no downloads, a minute or two
  tutelage check recipes/gkd.yaml     look at a recipe, its rows and its memory before the run
  tutelage train recipes/gkd.yaml     run it; the same command goes on with an interrupted run
"""
TRAIN = """\
Run a recipe. Every key of the recipe can be overridden:

  tutelage train recipes/gkd.yaml --train.steps 500 --method.student-fraction 1 --output runs/gkd-1

The run's folder gets config.yaml (runs again as it is), metrics.jsonl, samples.jsonl, evaluation.json,
checkpoints/, model/, a plain Hugging Face folder, and report.html. A run that was interrupted goes on when the same
command is given again. Exit status: 0 finished, 2 the recipe, data or models are wrong, 3 diverged,
4 no good checkpoint, 75 stopped by a signal and resumable.
"""
GENERATE = """\
Have a recipe's teacher or student answer its prompts, and write the answers as training data.

  tutelage generate recipes/seqkd.yaml --by teacher --out teacher.jsonl --decoding.strategy beam

Rows that the file already holds are not written again, so the same command goes on after an interruption.
Keys of the recipe can be overridden; --decoding.KEY sets how the text is written.
"""
CHECK = """\
Look before the run: read the recipe, load the tokenizers, compare the vocabularies, count what is kept and
dropped, look for rows that come twice, show three rows with the tokens in the loss coloured, estimate memory, and
stop. No weights are read, but with --dry-run. All mistakes are told at once, with exit status 2.
"""
EVALUATE = """\
Measure runs and models on tasks: small files that say on what data, with which prompt, how decoded, by which metrics.

  tutelage evaluate runs/gkd runs/sft --tasks dolly,self_instruct --data-folder data
  tutelage evaluate HuggingFaceTB/SmolLM2-135M-Instruct --tasks my-task.yaml --teacher.model BIGGER --data.limit 100

Records go to evaluations/ in the run's folder, each number with its interval, its n and its protocol; what is recorded
by the same protocol is not measured again, and an interruption costs one batch of answers. Keys of the tasks can be
overridden (--data.limit, --decoding.max-new-tokens), those of the models too (--student.dtype, --teacher.model).
"""
COMPARE = """\
Put what is on record of several runs side by side: one table a task, with 95 % intervals, the best and the second best
marked, and those that are worse than fine-tuning. Runs are tested against the baseline on the same items, with Holm's
correction. Numbers of different protocols are refused.

  tutelage compare runs/sft runs/gkd runs/minillm
  tutelage compare runs/sft ours=runs/gkd --format markdown --out table.md
  tutelage compare runs/sft runs/gkd --fail-if 'gkd.rouge_l significantly < sft.rouge_l'

Exit status: 0, or 1 where a condition of --fail-if holds.
"""
STUDY = """\
Run a grid of recipes, seeds and settings, measure every run, and collect the tables and figures that the study names.

  tutelage study studies/methods.yaml                  one run after another; the same command goes on
  tutelage study studies/methods.yaml --shard 1/4      the first of four shares, for as many processes or machines
  tutelage study studies/methods.yaml --collect        tables and figures of what is there

Finished runs are not run again, finished evaluations are not made again. A run that diverges is noted, and the study
goes on. Keys of the recipe that are given (--train.steps 20) hold for every run. Exit status as for train; 3 where a
run diverged.
"""
REPORT = """\
Write the page of a run, finished or going on; or of several runs, one page that compares them (docs/report.md):

  tutelage report runs/gkd --open
  tutelage report runs/sft runs/gkd --out gkd-or-sft.html
  tutelage report runs/sft --teacher path/to/teacher     the token view, for a run that had no teacher

The file needs nothing else and asks nothing of the network.
"""
TRY = """\
Ask a student and its teacher the same, and print their answers side by side, each of the student's tokens coloured by
how far it is from the teacher there:

  tutelage try runs/gkd "Why is the sky blue?" --decoding.max-new-tokens 200
  tutelage try path/to/model --teacher path/to/teacher

The prompt is rendered as the run's rows were. Without a prompt, each line that is typed is one.
"""
CACHE = """\
Have the teacher of a recipe read the text that does not change, once, and keep what it says on disk; `train` with the
same recipe then reads that instead of running the teacher (docs/teacher-cache.md):

  tutelage cache recipes/supervised-kd.yaml --teacher-cache.kind hidden

The size is told before anything is scored. The same command goes on with an interrupted capture, and captures
damaged files anew.
"""
SCHEMA = """\
Print the JSON schema of recipes, with which an editor checks keys and values, completes them and shows what they
mean (docs/integrations.md):

  tutelage schema --out recipe.schema.json
"""
EXPORT = """\
Write a finished student as one GGUF file, by the converter of your llama.cpp, and compare it with the student where
transformers can read it (docs/integrations.md):

  tutelage export runs/gkd --gguf --converter llama.cpp/convert_hf_to_gguf.py --outtype q8_0
"""
PUSH = """\
Upload a finished student with its tokenizer and its card to the Hugging Face hub, and nothing else of the run:

  tutelage push runs/gkd owner/name --private
"""
DEMO = """\
Distil the embedded task: a student starts from a few labelled examples, then goes on three ways with equal
steps (fine-tuning, supervised distillation, on-policy distillation), and is compared with its teacher on unseen
problems. Nothing is downloaded.
"""


def parser() -> argparse.ArgumentParser:
    """Every verb with its options; a verb's recipe keys are taken off before."""
    main = argparse.ArgumentParser("tutelage", description=MAIN, formatter_class=_TEXT, allow_abbrev=False)
    main.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = main.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str, description: str, recipe: bool = True) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=summary, description=description, formatter_class=_TEXT, allow_abbrev=False)
        if recipe:
            added.add_argument("recipe", metavar="RECIPE", help="a YAML file")
            added.add_argument(
                "--keys",
                action=_Keys,
                metavar="METHOD",
                help="list every key of a recipe with this method, and exit",
            )
        return added

    for add in (_running, _measuring, _sharing):
        add(verb)
    return main


def _running(verb: Verb) -> None:
    train = verb("train", "run a recipe", TRAIN)
    train.add_argument(
        "--allow-change", default="", metavar="KEYS",
        help="keys or sections that may differ from those the run began with, such as train.learning_rate,data",
    )  # fmt: skip
    train.add_argument(
        "--reset-optimizer", action="store_true", help="go on with a fresh optimiser, as where its state was lost"
    )
    train.add_argument("--no-verify", action="store_true", help="do not compare the checkpoint's checksums")
    train.add_argument(
        "--resume", choices=("auto", "never"), default="auto",
        help="auto (default) goes on with the run in the output folder; never refuses a folder that holds one",
    )  # fmt: skip
    generate = verb("generate", "write text with a recipe's teacher or student", GENERATE)
    generate.add_argument(
        "--by", choices=("teacher", "student"), default="teacher", help="who writes (default: teacher)"
    )
    generate.add_argument(
        "--rows", choices=("train", "validation"), default="train", help="whose prompts (default: train)"
    )
    generate.add_argument("--out", required=True, metavar="FILE", help="JSONL file to write or go on with")
    check = verb("check", "look at a recipe before the run", CHECK)
    check.add_argument(
        "--dry-run",
        action="store_true",
        help="load the weights too, make two steps in a folder that is taken away again, and say how long a run takes",
    )


def _measuring(verb: Verb) -> None:
    evaluate = verb("evaluate", "measure runs and models on tasks", EVALUATE, recipe=False)
    evaluate.add_argument(
        "subjects", metavar="RUN_OR_MODEL", nargs="*", help="run or model folder, or hub id; name=FOLDER names it"
    )
    evaluate.add_argument("--tasks", metavar="NAME,…", help="tasks by name, or paths of YAML files")
    evaluate.add_argument("--list", action="store_true", help="list the tasks that come with the package, and exit")
    evaluate.add_argument("--seeds", type=int, nargs="+", default=[], metavar="N", help="in place of the tasks' own")
    evaluate.add_argument(
        "--data-folder", default="data", metavar="DIR", help="where data files are looked for (default: data)"
    )
    evaluate.add_argument(
        "--out", metavar="DIR", help="where records of models go (default: runs/evaluations); runs keep their own"
    )
    compare = verb("compare", "put runs side by side", COMPARE, recipe=False)
    compare.add_argument("folders", nargs="+", metavar="FOLDER", help="evaluated run or model; name=FOLDER names it")
    compare.add_argument("--tasks", metavar="NAME,…", help="tasks to show (default: all on record)")
    compare.add_argument(
        "--baseline", metavar="FOLDER", help="run to test against (default: the one whose method is sft)"
    )
    compare.add_argument("--pairs", action="store_true", help="test each pair of runs, not each against the baseline")
    compare.add_argument(
        "--fail-if", action="append", default=[], metavar="CONDITION",
        help="leave with status 1 if this holds: 'gkd.rouge_l [significantly] < sft.rouge_l'; may be repeated",
    )  # fmt: skip
    compare.add_argument(
        "--format", choices=("table", "markdown", "latex", "json"), default="table", help="default: table"
    )
    compare.add_argument("--out", metavar="FILE", help="write there instead of printing")
    study = verb("study", "run a grid of runs and collect its tables and figures", STUDY, recipe=False)
    study.add_argument("study", metavar="STUDY", help="a YAML file")
    study.add_argument("--folder", metavar="DIR", help="where the runs go (default: runs/studies/NAME)")
    study.add_argument("--seeds", type=int, nargs="+", default=[], metavar="N", help="in place of the study's own")
    study.add_argument("--shard", metavar="I/N", help="run the I-th of N shares, counted from 1")
    study.add_argument("--collect", action="store_true", help="only collect what is there")
    study.add_argument("--dry-run", action="store_true", help="only list the runs, once all are checked")
    report = verb("report", "write the page of a run, or of several", REPORT, recipe=False)
    report.add_argument("folders", nargs="+", metavar="RUN", help="folder of a run; name=FOLDER names it")
    report.add_argument(
        "--out", metavar="FILE", help="default: report.html in the run's folder; comparison.html for several"
    )
    report.add_argument(
        "--teacher", metavar="MODEL", help="have this model and the students answer the runs' samples, and compare them"
    )
    report.add_argument("--open", action="store_true", help="show it in a browser")
    try_out = verb("try", "ask a student and its teacher, side by side", TRY, recipe=False)
    try_out.add_argument("run", metavar="RUN_OR_MODEL", help="folder of a run or a model, or a hub id")
    try_out.add_argument("prompt", nargs="?", help="what to ask (default: each line of the input)")
    try_out.add_argument("--teacher", metavar="MODEL", help="in place of the run's own")
    try_out.add_argument("--samples", type=int, metavar="N", help="sampled answers of each (default: one, greedy)")


def _sharing(verb: Verb) -> None:
    verb("cache", "keep on disk what a recipe's teacher says of fixed text", CACHE)
    schema = verb("schema", "print the JSON schema of recipes, for editors", SCHEMA, recipe=False)
    schema.add_argument("--out", metavar="FILE", help="write there instead of printing")
    export = verb("export", "write a finished student in another format", EXPORT, recipe=False)
    export.add_argument("run", metavar="RUN_OR_MODEL", help="folder of a run or a model")
    export.add_argument("--gguf", action="store_true", required=True, help="for llama.cpp and its kin")
    export.add_argument("--converter", required=True, metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py")
    export.add_argument("--outtype", choices=("f32", "f16", "bf16", "q8_0"), default="f16", help="default: f16")
    export.add_argument("--out", metavar="FILE", help="default: model-OUTTYPE.gguf beside the model")
    push = verb("push", "upload a finished student to the hub", PUSH, recipe=False)
    push.add_argument("run", metavar="RUN_OR_MODEL", help="folder of a run or a model")
    push.add_argument("repo_id", metavar="REPO_ID", help="owner/name; it is made if it is not there")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    demo = verb("demo", "distil the embedded task and compare methods", DEMO, recipe=False)
    demo.add_argument("--folder", default="runs/demo", help="where the runs go (default: runs/demo)")
    demo.add_argument("--prepare", action="store_true", help="write the data and the teacher only")
    demo.add_argument("--control", action="store_true", help="also train on text that the teacher writes")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="another draw of everything (default: 0)")


class _Version(argparse.Action):
    def __call__(self, parser, *_: object) -> None:
        from importlib.metadata import version

        print(f"tutelage {version('tutelage')}")
        parser.exit()


class _Keys(argparse.Action):
    def __call__(self, parser, namespace, method, option_string=None) -> None:
        from tutelage.methods import METHODS
        from tutelage.recipe_keys import describe_keys

        if method not in METHODS:
            parser.error(f"--keys: unknown method '{method}' (known: {', '.join(METHODS)})")
        print(describe_keys(method))
        parser.exit()
