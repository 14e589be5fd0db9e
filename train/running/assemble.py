"""Model, data and trainer of a recipe: LightningCLI with this project's callbacks, loggers and defaults."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from ..callbacks.checkpoints import Checkpoints, PlainFiles
from ..callbacks.guard import Guard
from ..callbacks.learning import Learning
from ..callbacks.pictures import Pictures
from ..callbacks.progress import Progress
from ..callbacks.rates import Rates
from ..callbacks.signals import Signals
from ..cli import UsageError
from ..sharded import Sharded
from .runs import MetricsFile

TRAINER = {  # what a recipe need not say; everything else is Lightning's own default
    "accelerator": "auto",
    "max_epochs": 100,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,  # a validation before the first step would cost time and move the random generators
    "enable_model_summary": False,
    "default_root_dir": "runs",
}


CALLBACKS = {
    "checkpoints": Checkpoints,
    "guard": Guard,
    "learning": Learning,
    "pictures": Pictures,
    "progress": Progress,
}


class Keys(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None):
        raise UsageError(message) from ex


class Saved(SaveConfigCallback):
    """config.yaml of the run folder, written at the first batch: a run that is refused before, as one on a checkpoint
    that does not fit, leaves the file as it is."""

    def setup(self, trainer, module, stage) -> None:
        """Too early."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        super().setup(trainer, module, "fit")


class Cli(LightningCLI):
    """Reads recipe and line; makes model and data, and a trainer that works in one run folder."""

    def __init__(self, verb: str, lines: list[str], folder: Path | None, resumed_at: int | None):
        self.verb, self.folder, self.resumed_at = verb, folder, resumed_at
        saving = {"save_config_callback": Saved, "save_config_kwargs": {"overwrite": True}}
        super().__init__(
            None,
            None,
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            run=False,
            args=lines,
            parser_class=Keys,
            parser_kwargs={"allow_abbrev": False},
            **(saving if verb == "fit" else {"save_config_callback": None}),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_argument(
            "--test",
            type=bool,
            default=True,
            help="after fit, test the best checkpoint where there are test images of their own",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        check_accelerator(self.config.trainer.accelerator)

    def instantiate_trainer(self, **options: Any) -> L.Trainer:
        settings = self.config_init.trainer
        if settings.strategy == "fsdp2":
            options = {"strategy": Sharded(), **options}
        self.made = {key: self.config_init[key] for key in CALLBACKS}
        self.signals = Signals(self.made["checkpoints"])
        extra: dict[str, Any] = {"plugins": [*as_list(settings.plugins), PlainFiles()]}
        callbacks = [self.made["guard"], Rates(), self.made["pictures"]]
        if settings.enable_progress_bar is not False:
            callbacks.insert(0, self.made["progress"])
        if self.verb == "fit":
            if settings.logger in (None, True):
                board = TensorBoardLogger(self.folder, name="", version="tensorboard", purge_step=self.resumed_at)
                extra["logger"] = [MetricsFile(self.folder, self.resumed_at), board]
            callbacks += [
                self.made["learning"],
                self.made["checkpoints"].resume,
                self.made["checkpoints"],
                self.signals,
            ]
        else:
            extra |= {"logger": False}
        options = {**settings.as_dict(), **extra, **options, "default_root_dir": str(self.folder)}
        options["callbacks"] = [*as_list(settings.callbacks), *callbacks]
        if self.save_config_callback and not settings.fast_dev_run:
            options["callbacks"].append(self.save_config_callback(self.parser, self.config, **self.save_config_kwargs))
        return L.Trainer(**options)


def as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def check_accelerator(name: Any) -> None:
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        built = torch.version.cuda or "without CUDA"
        raise ValueError(
            f"trainer.accelerator={name}: torch {torch.__version__} (CUDA {built}) "
            "sees no GPU here; use --trainer.accelerator auto or cpu"
        )
