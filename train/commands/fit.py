"""patchloom fit, validate and test: LightningCLI over a recipe, in one run folder, resumable."""

import argparse

PASS_ON = True  # everything below model, data, trainer and the callbacks is LightningCLI's
FIT = """examples:
  patchloom fit -c shapes/cct                                a packaged recipe (patchloom recipes lists them)
  patchloom fit -c cifar10/cct --data.root photos --trainer.max_epochs 20
  patchloom fit -c base.yaml -c mine.yaml                    later files win, the line wins over files
  patchloom fit -c folder/swin_tiny --adapter lora:r=8       the weights stay as they are, an adapter learns
  patchloom fit --resume runs/shapes/cct/2026-01-31_12-00-00 go on where it stopped, bit for bit
  patchloom fit -c shapes/cct --print_config                 all settings with their values; --help-all explains them"""
JUDGE = """examples:
  patchloom {verb} runs/shapes/cct/2026-01-31_12-00-00     the run's own images, its best checkpoint
  patchloom {verb} last.ckpt --data photos                 a folder of class folders
  patchloom {verb} -c cifar10/cct --ckpt_path last.ckpt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verb = parser.get_default("command")
    parser.epilog = FIT if verb == "fit" else JUDGE.format(verb=verb)
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="RECIPE",
        help="a YAML file, or a packaged recipe's name; may be repeated",
    )
    if verb == "fit":
        parser.usage = "patchloom fit (-c RECIPE | --resume RUN) [--KEY VALUE …]"
        parser.add_argument(
            "--resume",
            metavar="RUN|CKPT",
            help="go on with a run: its last.ckpt or that file, its config.yaml, in its folder",
        )
        parser.add_argument(
            "--adapter",
            metavar="SPEC|FOLDER",
            help="train an adapter on the frozen model, e.g. lora:r=8, or go on with a saved one (model.adapter)",
        )
    else:
        parser.usage = f"patchloom {verb} (RUN|CKPT|MODEL [--data DIR] | -c RECIPE --ckpt_path CKPT) [--KEY VALUE …]"
        parser.add_argument("--data", metavar="DIR", help="a folder of images instead of the run's data")
        parser.add_argument("--tokens", metavar="SPEC", help="a token plugin, or none, instead of the run's own")
    parser.add_argument(
        "--ckpt_path",
        metavar="CKPT",
        help="continue from this checkpoint" if verb == "fit" else "the checkpoint to judge",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.add_argument("--help-all", action="store_true", help="every key with its type and meaning")


def run(args: argparse.Namespace) -> int:
    from ..running.session import Session

    return Session(args.command, args).run()
