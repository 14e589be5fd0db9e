"""Small parts of diffusion runs: autoencoders, pictures, a recipe that trains in seconds."""

from pathlib import Path

import lightning as L
import numpy as np
import torch
from PIL import Image

from patchloom.data.sample import KINDS
from patchloom.train.running import checkpoint
from patchloom.vision.generation.dit import DiT
from patchloom.vision.generation.gaussian import Gaussian
from patchloom.vision.parts import plain

RECIPE = """# three epochs of ten steps
seed_everything: 7
model:
  class_path: patchloom.train.diffuse.Diffuse
  init_args:
    model:
      class_path: patchloom.vision.generation.dit.DiT
      init_args: {depth: 2, dim: 32, heads: 2, patch: 4, in_channels: 3, size: [32, 32], num_classes: 10}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.002}}
    ema: {decay: 0.9}
    samples: {every_n_steps: 20, rows: 2, columns: 2, steps: 3}
data:
  class_path: patchloom.data.modules.ShapesData
  init_args: {train_length: 80, val_length: 16, test_length: 16, batch_size: 8, workers: 0, augment: null}
trainer: {max_epochs: 3, accelerator: cpu, log_every_n_steps: 1}
checkpoints: {every_n_steps: 4}
"""


def save_autoencoder(folder: Path, seed: int = 0) -> str:
    """An AutoencoderKL of random weights, factor 4, 4 channels."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoencoderKL(
            block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, latent_channels=4,
        )  # fmt: skip
    made.save_pretrained(folder)
    return str(folder)


def save_pictures(root: Path, splits: dict[str, int], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Class folders of pictures of many sizes, `splits` of each class."""
    random = np.random.default_rng(0)
    for split, count in splits.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = random.integers(0, 255, (5 + i % 3, 6, 3), np.uint8)
                Image.fromarray(noise).resize((40 + i, 36), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return root


def denoiser(**changed) -> DiT:
    """Two blocks of 32 channels over 4 x 4 patches of 32 x 32 pixels."""
    given = {"depth": 2, "dim": 32, "heads": 2, "patch": 4, "in_channels": 3, "size": (32, 32), "num_classes": 10}
    return DiT(**given | changed)


class Batches:
    """A loader that is no list, which Lightning would take for several."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


class Numbers(L.LightningDataModule):
    """Smooth pictures in [-1, 1], dark or light by their class; with labels, captions or embeddings."""

    def __init__(self, classes=None, captions=False, preprocessing=None, count=32, channels=3, size=32, embedded=None):
        super().__init__()
        self.classes = list(classes or map(str, range(10)))
        self.preprocessing = preprocessing
        self.labels = torch.arange(count) % len(self.classes)
        noise = torch.randn(count, channels, 4, 4, generator=torch.Generator().manual_seed(1))
        grey = self.labels.view(-1, 1, 1, 1) / len(self.classes) * 2 - 1
        self.x = torch.nn.functional.interpolate(grey + 0.1 * noise, (size, size), mode="bilinear").clamp(-1, 1)
        self.y = [f"picture {i}" for i in self.labels.tolist()] if captions else self.labels
        if embedded is not None:  # captions that somebody has encoded
            self.y = torch.randn(count, *embedded, generator=torch.Generator().manual_seed(2))

    def train_dataloader(self):
        return Batches((self.x[i : i + 8], self.y[i : i + 8]) for i in range(0, len(self.x), 8))

    def val_dataloader(self):
        return Batches([(self.x[:8], self.y[:8]), (self.x[8:12], self.y[8:12])])


class Caption(torch.nn.Module):
    """Stands for a frozen text encoder: the first three letters, as eight numbers each."""

    text, spec, digest = (3, 8), "letters", "letters-3"

    def arguments(self):
        return {"spec": self.spec, "length": 3}

    def encode(self, captions):
        codes = torch.tensor([[ord(c) for c in text.ljust(3)[:3]] for text in captions])
        return torch.nn.functional.one_hot(codes % 8, 8).float(), torch.ones(len(captions), 3, dtype=torch.bool)


class Losses(L.Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.found.append(float(outputs["loss"]))


def fit(module, data, folder, callbacks=(), **options) -> L.Trainer:
    """A run on the processor, without files; the trainer, with `losses` of the steps."""
    losses = Losses()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, log_every_n_steps=1,
        callbacks=[losses, *callbacks], **options,
    )  # fmt: skip
    trainer.losses = losses.found
    trainer.fit(module, data)
    return trainer


def save_run(path, model, latents=None, average=False, classes=tuple(KINDS), text=None):
    """A checkpoint as a run writes it, with the weights as they are; `average` of zeros beside them."""
    n = model.in_channels
    pixels = {"input_size": (n, *model.size), "mean": (0.5,) * n, "std": (0.5,) * n}
    if latents is not None:
        pixels = {"input_size": (n, *model.size), "latents": latents}
    head = checkpoint.header(model, list(classes), pixels)
    process = Gaussian() if model.out_channels == 2 * n else Gaussian(variance="large")
    words = None if text is None else {**text.arguments(), "digest": text.digest}
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    if average:
        state |= {f"ema.module.{k}": v * 0.9 for k, v in model.state_dict().items()}
    checkpoint.save({"patchloom": {**head, "process": plain(process), "text": words}, "state_dict": state}, path)
    return str(path)


def awake(**options):
    """A denoiser whose answers depend on all that it is told."""
    torch.manual_seed(3)
    model = denoiser(**options)
    for p in model.parameters():
        if p.ndim > 1 and not p.count_nonzero():
            torch.nn.init.normal_(p, std=0.1)
    return model
