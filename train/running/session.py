"""One fit, validate or test: what the line asks for, carried out in a run folder, and the results told."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from ...data.folders import existing
from ...vision.adapters import host
from ...vision.adapters.files import save_adapter
from ...vision.zoo import adapter_within, list_models
from ..callbacks.checkpoints import Checkpoints, PlainFiles
from ..callbacks.pictures import Pictures
from ..callbacks.progress import Progress
from ..callbacks.signals import Interrupted, Signals
from ..cli import SUCCESS, UsageError
from ..ema import Ema
from ..saved.judge import set_tokens
from ..saved.judged import Judged
from ..words import in_words, numbers, pairs, split_words
from . import checkpoint
from .assemble import CALLBACKS, TRAINER, Cli
from .calm import calm, fitting, one_line_errors
from .keys import find_fault, parameters, read_yaml, resolve, tidy
from .recipes import find_recipe, recipe_name
from .runs import drop_if_empty, new_run, run_of

PUBLISHED = ("cifar-10-batches-py", "cifar-100-python", "raw")  # torchvision's files, which are no class folders


class Session:
    """What one command line asks for."""

    def __init__(self, verb: str, args: argparse.Namespace):
        self.verb, self.args = verb, args
        self.words, self.options = split_words(args.rest)
        if args.help_all:
            self.options.append("--help")
        if getattr(args, "adapter", None):
            self.options = ["--model.adapter", args.adapter, *self.options]

    def run(self) -> int:
        with calm(), one_line_errors():
            return self.fit() if self.verb == "fit" else self.judge()

    # ---- fit

    def fit(self) -> int:
        args = self.args
        if self.words:
            raise UsageError(
                f"fit takes no word {self.words[0]!r}: -c {self.words[0]} trains a recipe, "
                f"--resume {self.words[0]} goes on with a run"
            )
        path = self._resumed()
        files = [find_recipe(name) for name in args.config]
        run = run_of(path) if path else None
        if run and not files:
            files = [run / "config.yaml"]
        elif run and args.resume:
            files = [run / "config.yaml", *files]
        if not files and not any(option.startswith(("--model", "--help", "--print_config")) for option in self.options):
            raise UsageError("no recipe: patchloom fit -c RECIPE, with a YAML file or one of patchloom recipes")
        head = checkpoint.read(path) if path else None
        recipe = (
            head["patchloom"]["recipe"] if head and "patchloom" in head else recipe_name(files[0]) if files else "run"
        )
        folder = run or new_run(self._root(files), recipe)
        cli = self._cli(files, folder, head["global_step"] if head else None)
        cli.model.recipe = recipe
        del head
        with cli.signals:
            self._fit(cli, path)
            return self._after_fit(cli)

    def _resumed(self) -> Path | None:
        """The checkpoint to go on from."""
        name = self.args.resume or self.args.ckpt_path
        if name is None:
            return None
        if self.args.resume and self.args.ckpt_path:
            raise UsageError("--resume and --ckpt_path both name a checkpoint: give one")
        path = Path(name)
        if path.is_dir():
            path = path / "last.ckpt"
            if not path.is_file():
                raise FileNotFoundError(
                    f"no last.ckpt in {name}: the run ended before its first save; "
                    f"begin anew with patchloom fit -c {name}/config.yaml"
                    if (Path(name) / "config.yaml").is_file()
                    else f"no run in folder {name}: it has no last.ckpt"
                )
        elif not path.is_file():
            raise FileNotFoundError(f"no run folder or checkpoint {name}")
        if self.args.resume and run_of(path) is None:
            raise FileNotFoundError(
                f"no config.yaml beside {path}: give the recipe too, patchloom fit -c RECIPE --ckpt_path {path}"
            )
        return path

    def _root(self, files: list[Path]) -> str:
        """Where run folders go: --trainer.default_root_dir, of the line or of the last file that says so."""
        root = TRAINER["default_root_dir"]
        for file in files:
            root = (read_yaml(file).get("trainer") or {}).get("default_root_dir") or root
        for option, value in pairs(self.options):
            root = value if option == "trainer.default_root_dir" and value else root
        return str(root)

    def _cli(self, files: list[Path], folder: Path, resumed_at: int | None) -> Cli:
        lines = [word for file in files for word in ("--config", str(file))] + self.options
        try:
            return Cli(self.verb, lines, folder, resumed_at)
        except UsageError as error:
            top = {
                "seed_everything": Any,
                "trainer": parameters(L.Trainer),
                "model": L.LightningModule,
                "data": L.LightningDataModule,
                "test": Any,
                **{key: parameters(callback) for key, callback in CALLBACKS.items()},
            }
            fault = find_fault(files, list(pairs(self.options)), top)
            raise UsageError(fault or tidy(str(error))) from error

    def _fit(self, cli: Cli, path: Path | None) -> None:
        if path is not None and cli.trainer.is_global_zero:
            print(f"resuming {path}", file=sys.stderr)
        elif cli.trainer.is_global_zero and not cli.trainer.fast_dev_run:
            print(f"run folder {cli.folder}", file=sys.stderr)
        try:
            with fitting(cli.model, path):
                cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(path) if path else None)
        except Interrupted as signal:
            if cli.trainer.is_global_zero:
                print(
                    f"saved {signal.saved}; go on with: patchloom fit --resume {cli.folder}"
                    if signal.saved
                    else "nothing was saved yet",
                    file=sys.stderr,
                )
            raise
        finally:
            if path is None and cli.trainer.is_global_zero:
                drop_if_empty(cli.folder)

    def _after_fit(self, cli: Cli) -> int:
        """Test (or validate) the best checkpoint, draw its answers, say where everything is."""
        trainer, saved = cli.trainer, cli.made["checkpoints"]
        best = saved.best_model_path or saved.last_path
        report: dict[str, Any] = {"run": str(cli.folder), "checkpoint": best, "validation": saved.metrics}
        if best is not None and not trainer.fast_dev_run:
            ours = cli.config.test and has_test_images(cli.model, cli.datamodule)
            if ours or saved.metrics:
                judge = trainer.test if ours else trainer.validate
                report["test" if ours else "validation"] = numbers(
                    judge(cli.model, cli.datamodule, ckpt_path=best, verbose=False)
                )
        if not trainer.is_global_zero:
            return SUCCESS
        if best is not None and not trainer.fast_dev_run and (folder := save_own(best, cli.folder)):
            report["adapter"] = str(folder)
        for name in ("curves", "predictions", "confusion"):
            if (picture := cli.folder / f"{name}.png").is_file():
                report[name] = str(picture)
        if sheets := sorted(cli.folder.glob("samples_*.png")):
            report["samples"] = str(sheets[-1])
        self._tell(report)
        return SUCCESS

    # ---- validate, test

    def judge(self) -> int:
        args = self.args
        named = [*self.words, *([args.ckpt_path] if args.ckpt_path else [])]
        if len(named) > 1:
            raise UsageError(f"{self.verb} takes one run folder or checkpoint, got {', '.join(named)}")
        if not named:
            raise UsageError(f"no checkpoint: patchloom {self.verb} RUN, or -c RECIPE --ckpt_path CKPT")
        path = checkpoint.find(target := named[0])
        if path is None:
            known = target.startswith("timm:") or list_models(target.partition(".")[0])
            raise ValueError(
                f"no run folder or checkpoint {target}"
                + (f"; patchloom eval imagenet {target} --data DIR judges a published model" if known else "")
            )
        run = run_of(path)
        files = [find_recipe(name) for name in args.config] or ([run / "config.yaml"] if run else [])
        if files:
            module, data, trainer = self._from_recipe(
                files, run or path.parent, checkpoint.read(path).get("patchloom", {}).get("classes", [])
            )
        else:
            module, data, trainer = self._from_checkpoint(path)
        if args.tokens:
            set_tokens(module.model, args.tokens, target)
        with Signals(Checkpoints()), fitting(module, path):
            results = numbers(getattr(trainer, self.verb)(module, data, ckpt_path=str(path), verbose=False))
        if trainer.is_global_zero:
            self._tell(
                {
                    "checkpoint": str(path),
                    "data": args.data or getattr(data, "root", None),
                    {"validate": "validation"}.get(self.verb, self.verb): results,
                }
            )
        return SUCCESS

    def _from_recipe(
        self, files: list[Path], folder: Path, classes: list[str]
    ) -> tuple[L.LightningModule, L.LightningDataModule, L.Trainer]:
        if self.args.data:
            self.options = [*self._data_options(files, classes), *self.options]
            folder = folder / f"{self.verb}_{Path(self.args.data).resolve().name}"
        cli = self._cli(files, folder, None)
        cli.model.recipe = recipe_name(files[0])
        return cli.model, cli.datamodule, cli.trainer

    def _data_options(self, files: list[Path], classes: list[str]) -> list[str]:
        """--data DIR as options: class folders are read by FolderData, all of them where DIR isn't split; else the
        run's own class takes it as root.
        """
        from ...data.dense_images import DenseImages

        root = existing(self.args.data)
        kind = ""
        for file in files:
            kind = (read_yaml(file).get("data") or {}).get("class_path", kind)
        dense = resolve(kind) if "." in kind else None
        if isinstance(dense, type) and issubclass(dense, DenseImages):
            return ["--data.root", str(root)]
        if kind.endswith(".ImageNetData") or any((root / name).exists() for name in PUBLISHED):
            return ["--data.root", str(root)]
        return [
            "--data",
            "patchloom.train.saved.judged.Judged",
            "--data.root",
            str(root),
            *(["--data.order", json.dumps(classes)] if classes else []),
        ]

    def _from_checkpoint(self, path: Path) -> tuple[L.LightningModule, L.LightningDataModule, L.Trainer]:
        """A checkpoint without its recipe: the model that it describes, on a folder of images."""
        from ..classify import Classify
        from ..commands.predict_dense import is_dense

        given = dict(pairs(self.options))
        if not self.args.data and set(given) == {"data.root"}:  # what it is called where there is a recipe
            self.args.data, self.options = given["data.root"], []
        if not self.args.data:
            raise UsageError(f"no config.yaml beside {path}, so its data is unknown: add --data DIR, or -c RECIPE")
        if self.options:
            raise UsageError(f"{self.options[0]}: there is no recipe beside {path} to change; give one by -c")
        content = checkpoint.read(path)
        model, classes, preprocessing = checkpoint.load_model(str(path), ema=False)
        if "speech" in content["patchloom"]:
            raise UsageError(f"{path} talks: patchloom chat asks it, patchloom eval vqa judges it, or -c RECIPE")
        if hasattr(model, "predictions"):
            raise UsageError(f"{path} makes images: patchloom eval fid judges them, or -c RECIPE its loss")
        if hasattr(model, "of_texts"):
            raise UsageError(f"{path} matches pictures with texts: patchloom eval zeroshot or eval retrieval judges it")
        if is_dense(model):
            raise UsageError(
                f"{path} finds objects or classes of pixels: patchloom eval coco or eval ade20k judges it, or -c RECIPE"
            )
        module = Classify(model, ema=Ema() if any(name.startswith("ema.") for name in content["state_dict"]) else None)
        module.classes = classes
        progress, pictures = Progress(), Pictures()
        trainer = L.Trainer(
            logger=False,
            callbacks=[progress, pictures],
            plugins=[PlainFiles()],
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=str(path.parent / f"{self.verb}_{Path(self.args.data).resolve().name}"),
        )
        return module, Judged(self.args.data, classes, preprocessing=preprocessing), trainer

    # ---- results

    def _tell(self, report: dict[str, Any]) -> None:
        report = {key: value for key, value in report.items() if value}
        if self.args.json:
            print(json.dumps(report, indent=1))
            return
        width = max(map(len, report))
        for key, value in report.items():
            print(f"{key:<{width}}  {in_words(value) if isinstance(value, dict) else value}")


def save_own(best: str, folder: Path) -> Path | None:
    """The adapter of the best checkpoint, where it has one, in a folder of its own beside it; below a dense head the
    backbone's."""
    head = checkpoint.read(best).get("patchloom", {})
    if adapter_within(head.get("model", {})) is None:
        return None
    model, classes, preprocessing = checkpoint.load_model(best)
    where, trunk = folder / "adapter", head.get("digest")
    below = host(model)  # of a dense head, whose classes are no matter of the backbone's
    return save_adapter(
        below, where, classes=classes if below is model else (), preprocessing=preprocessing, trunk=trunk
    )


def has_test_images(module: L.LightningModule, data: L.LightningDataModule | None) -> bool:
    """Whether there are test images that aren't the validation images."""
    splits = getattr(data, "splits", None)
    if splits is not None:
        return splits.test is not None and splits.test is not splits.val
    return (
        data is not None
        and type(data).test_dataloader is not L.LightningDataModule.test_dataloader
        and type(module).test_step is not L.LightningModule.test_step
    )
