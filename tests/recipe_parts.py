"""The packaged recipes, and LightningCLI that reads them for a run of two small steps."""

from pathlib import Path

import yaml
from lightning.pytorch.cli import LightningCLI

from patchloom.train.running.recipes import recipes

RECIPES = {recipe.name: recipe for recipe in recipes()}
KINDS = {n: yaml.safe_load(Path(r.file).read_text())["model"]["class_path"] for n, r in RECIPES.items()}


def cli(lines: list[str], folder: Path) -> LightningCLI:
    """As `patchloom fit` reads it: unknown keys fail, and those of its own callbacks are taken."""
    from patchloom.train.callbacks.checkpoints import Checkpoints

    class Reader(LightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.add_lightning_class_args(Checkpoints, "checkpoints")

        def instantiate_trainer(self, **options):
            self.config_init.trainer.callbacks = []
            return self._instantiate_trainer(
                {
                    **self.config_init.trainer,
                    "callbacks": [],
                    "accelerator": "cpu",
                    "devices": 1,
                    "logger": False,
                    "max_epochs": 1,
                    "enable_checkpointing": False,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    "limit_train_batches": 2,
                    "limit_val_batches": 1,
                    "num_sanity_val_steps": 0,
                    "precision": "32-true",
                    "check_val_every_n_epoch": 1,
                    "accumulate_grad_batches": 1,
                    "default_root_dir": folder,
                },
                [],
            )

    return Reader(
        None,
        None,
        run=False,
        args=lines,
        save_config_callback=None,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )
