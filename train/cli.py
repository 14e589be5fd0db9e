"""The front door: finds the command on the line, imports only its module, and turns errors into one line and a status.

A command module has `add_arguments(parser)` and `run(args) -> int`; it imports torch inside `run`, so that `--help`
stays quick. One that sets `PASS_ON = True` gets what its parser doesn't know as `args.rest` (LightningCLI reads it).
"""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

BROUGHT: list[str] = []  # the user's modules that --import named
COMMANDS: dict[str, tuple[str, str]] = {
    "fit": (".commands.fit", "train from a recipe or a YAML file; --resume continues a run"),
    "validate": (".commands.fit", "metrics of a recipe or a saved run on its validation images"),
    "test": (".commands.fit", "metrics of a recipe or a saved run on its test images"),
    "predict": (".commands.predict", "the five likeliest classes of image files or folders"),
    "recipes": (".running.recipes", "the packaged recipes, with what to expect of each"),
    "models": (".catalogue.models", "names, parameters, MACs, input size and weights"),
    "weights": (".commands.weights", "list, get or check published checkpoints"),
    "features": (".commands.features", "embeddings to a file; k-nearest-neighbour and linear accuracy"),
    "generate": (".commands.generate", "images from a trained denoiser: by class or caption, inpainted, in sheets"),
    "chat": (".commands.chat", "questions about pictures, answered by a vision-language model as one reads"),
    "latents": (".commands.latents", "what an autoencoder makes of pictures, for diffusion in latents; resumable"),
    "shards": (
        ".commands.shards",
        "pictures in class folders as a few large files, for sets of ImageNet's size; resumable",
    ),
    "demo": (".demo.command", "a page in the browser: every task on one's own pictures"),
    "eval": (".evaluation.command", "official metrics on an official layout, e.g. eval imagenet"),
    "bench": (".commands.bench", "images/s, memory and MACs of a model, alone or against another"),
    "tokens": (".commands.tokens", "the setting of a token plugin that meets a budget of time, measured here"),
    "show-tokens": (
        ".commands.show_tokens",
        "which patches of an image are kept, merged or dropped, drawn layer by layer",
    ),
    "adapters": (
        ".commands.adapters",
        "methods that train few parameters, saved adapters, and plain weights made of them",
    ),
    "export": (".export.command", "an ONNX file or exported program, compared with the network, and its card"),
    "push": (".commands.push", "a model into a repository of the Hugging Face hub, or a folder laid out like one"),
    "pull": (".commands.pull", "a model from such a repository or folder, ready for every other command"),
    "compat": (".catalogue.compat", "which token plugin goes into which kind of backbone, and why not"),
}
SUCCESS, FAILURE, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
EXTRAS = {
    "lightning": "train",
    "jsonargparse": "train",
    "torchmetrics": "train",
    "torchdata": "train",
    "webdataset": "train",
    "rich": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "sklearn": "train",
    "pycocotools": "train",
    "faster_coco_eval": "train",
    "pycocoevalcap": "multimodal",
    "albumentations": "train",
    "cv2": "train",  # which albumentations brings
    "transformers": "multimodal",
    "diffusers": "multimodal",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "gradio": "demo",
    "mmengine": "openmmlab",
    "mmcv": "openmmlab",
}


class UsageError(Exception):
    """The line cannot be understood: one line, status 2."""


class Terminated(BaseException):
    """SIGTERM arrived: unwinds like KeyboardInterrupt, so that temporary files are removed; status 143."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with near names where an option is misspelt."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse_args(self, args=None, namespace=None):
        line = list(sys.argv[1:] if args is None else args)
        task = self.task_of(line)
        known = {*self._option_string_actions, *options(task)}
        for word in line[: line.index("--")] if "--" in line else line:  # before argparse misses the one that was meant
            if word.startswith("--") and " " not in word and word.partition("=")[0] not in known:
                task.stray(word)
        found, rest = self.parse_known_args(line, namespace)
        if rest:
            task.stray(rest[0])
        return found

    def task_of(self, line: Sequence[str]) -> "Parser":
        """The parser of the task that the line names (`coco` of `eval coco`); else this one."""
        tasks = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return next((choices[word] for choices in tasks for word in line if word in choices), self)

    def stray(self, word: str) -> NoReturn:
        known = dict.fromkeys(name for name in options(self) if name.startswith("-") == word.startswith("-"))
        self.error(f"unrecognized argument {word!r}{near(word.partition('=')[0], known)}")


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every option of `parser` and of the parsers below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from options(child)


def near(word: str, known: Iterable[str]) -> str:
    """`; did you mean a, b?`, or nothing where no known name is near."""
    names = difflib.get_close_matches(word, list(known), n=3, cutoff=0.55)
    return f"; did you mean {', '.join(names)}?" if names else ""


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        f"usage: patchloom COMMAND …          patchloom COMMAND --help tells more\n\n{rows}\n\n"
        "  --import M   a module of your own, from here or installed, that a recipe or a checkpoint is made of\n"
        "  --offline    open no socket: only what is in the cache or named as a file\n"
        "  --traceback  show where an error came from\n"
        "  --version    print the version\n\n"
        "first steps: patchloom recipes · patchloom fit -c shapes/cct · patchloom predict RUN image.jpg"
    )


def find_command(line: Sequence[str]) -> int:
    """Index of the command: the first word that is neither an option nor an option's value (`-c recipe fit` is `fit -c
    recipe`).
    """
    for i, word in enumerate(line):
        before = line[i - 1] if i else ""
        if not word.startswith("-") and not (before.startswith("-") and "=" not in before):
            return i
    hint = near(line[0], ("--import", "--offline", "--traceback", "--version", "--help"))
    raise UsageError(f"no command beside {line[0]}{hint or '; choose from ' + ', '.join(COMMANDS)}")


def take(line: list[str], flag: str) -> bool:
    """Removes `flag` from the line (up to `--`), says whether it was there."""
    end = line.index("--") if "--" in line else len(line)
    found = flag in line[:end]
    line[:end] = [word for word in line[:end] if word != flag]
    return found


def take_values(line: list[str], flag: str) -> list[str]:
    """Removes `flag VALUE`, as often as it is there, and gives the values."""
    found = []
    while flag in (line[: line.index("--")] if "--" in line else line):
        at = line.index(flag)
        if at + 1 == len(line):
            raise UsageError(f"{flag} needs a value")
        found.append(line[at + 1])
        del line[at : at + 2]
    return found


def bring_in(modules: Iterable[str]) -> None:
    """Imports modules of the user's, from the working folder too, and notes them in BROUGHT for child processes."""
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(
                f"--import {name}: a module's name is needed, as Python imports it, e.g. mine or mine.blocks"
            )
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise
            hint = f"; did you mean {name[:-3]}?" if name.endswith(".py") else ""
            raise UsageError(f"--import {name}: no such module here ({os.getcwd()}) or installed{hint}") from error
        BROUGHT.append(name)


def dispatch(line: list[str]) -> int:
    if not line or line[0] in ("-h", "--help", "help"):
        print(usage())
        return SUCCESS if line else USAGE
    if line[0] == "--version":
        from .. import __version__

        print(f"patchloom {__version__}")
        return SUCCESS
    command = line.pop(find_command(line))
    if command not in COMMANDS:
        raise UsageError(
            f"unknown command {command!r}{near(command, COMMANDS) or '; choose from ' + ', '.join(COMMANDS)}"
        )
    name, text = COMMANDS[command]
    module = import_module(name, __package__)
    parser = Parser(prog=f"patchloom {command}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(command=command)
    module.add_arguments(parser)
    if getattr(module, "PASS_ON", False):
        args, args.rest = parser.parse_known_args(line)
    else:
        args = parser.parse_args(line)
    return module.run(args)


def describe(error: BaseException) -> str | None:
    """One line for an error that was raised on purpose; None for a bug, which keeps its traceback."""
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        return extra and f"this needs {error.name}, which is not installed: pip install 'patchloom[{extra}]'"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    elif isinstance(error, (ValueError, OSError)) or type(error).__module__.startswith("patchloom."):
        text = str(error) or type(error).__name__
    else:
        return None
    return " ".join(text.split())


def on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one kills at once
    raise Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line. Status: 0 success, 1 failure, 2 usage, 130 Ctrl-C, 143 SIGTERM."""
    line = list(sys.argv[1:] if argv is None else argv)
    traceback = take(line, "--traceback")
    if take(line, "--offline"):
        os.environ["HF_HUB_OFFLINE"] = "1"  # of this process; huggingface_hub and vision/download.py read it
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        bring_in(take_values(line, "--import"))
        return dispatch(line)
    except BrokenPipeError:  # `patchloom models | head`: nobody reads on, and the interpreter must not try to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except UsageError as error:
        print(f"patchloom: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("patchloom: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print("patchloom: terminated", file=sys.stderr)
        return TERMINATED
    except Exception as error:  # only to tell those raised on purpose in one line; every other goes on as it is
        text = describe(error)
        if traceback or text is None:
            raise
        print(f"patchloom: error: {text}", file=sys.stderr)
        return FAILURE
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
