"""The card of a network that leaves this suite: what it is, how an image becomes its input, what its outputs are
called, under which licence its weights are; as JSON for programs and as Markdown for people."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..saved.judge import Judge
    from .model import Portable

UNKNOWN = "not stated: it is that of the data and weights that it was trained with"


def card_of(judge: "Judge", args: argparse.Namespace, model: "nn.Module") -> dict[str, Any]:
    """What is known of the network before it is written."""
    from ...vision.adapters import adapter_of, in_words

    adapter = adapter_of(model)
    return {
        **identity(judge.model, judge.spec, judge.preprocessing),
        **({"license": None, "source": None} if args.random_weights else {}),
        "format": args.format,
        "dtype": args.dtype,
        "folded": args.fold,
        "tokens": tokens_of(model),
        "adapter": None if adapter is None else in_words(adapter),
        "random_weights": args.random_weights,
    }


def tokens_of(model: "nn.Module") -> list[str]:
    """What is attached, as one spells it."""
    from ...vision.plugins import PLUGINS, plugins_of
    from ...vision.plugins import __name__ as package
    from ...vision.spelling import in_words

    return [in_words(p, PLUGINS, package) for p in plugins_of(model)]


def identity(model: "nn.Module", spec: str, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The network's name, size, licence and preprocessing."""
    from ... import __version__
    from ...vision.count import parameters

    cfg = getattr(model, "default_cfg", None) or {}
    published = find_published(spec)
    return {
        "model": spec,
        "architecture": getattr(model, "name", None) or cfg.get("architecture") or type(model).__name__,
        "parameters": parameters(model)[0],
        "license": published.license if published is not None else cfg.get("license"),
        "source": (published.url if published is not None else cfg.get("url")) or None,
        "preprocessing": json.loads(json.dumps(dict(preprocessing))),
        "made_by": f"patchloom {__version__}",
    }


def find_published(spec: str) -> Any:
    """The published weights that a name stands for; None for anything else."""
    from ...vision import zoo
    from ...vision.generation.create import is_denoiser
    from ...vision.weights import published
    from ..running import checkpoint

    name, _, file = spec.partition("=")
    if file or name.startswith("timm:") or checkpoint.find(name) is not None:
        return None
    if is_denoiser(name):
        base, _, tag = name.partition(".")
        return next((w for w in published(base) if tag in ("", w.tag)), None)
    return zoo.resolve(name).default


def write_card(about: dict[str, Any], part: Path, out: Path, network: "Portable") -> None:
    """Completes `about` with what the file is, and writes both cards beside it. The file lies at `part` and will be
    called `out`."""
    about |= {
        "file": out.name,
        "bytes": part.stat().st_size,
        "sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
        "task": network.task,
        "inputs": list(network.inputs),
        "outputs": list(network.outputs),
        "input_size": [network.channels, *network.size],
    }
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    part.with_suffix(".json").write_text(text, encoding="utf-8")
    part.with_suffix(".md").write_text(markdown(about), encoding="utf-8")


def markdown(about: Mapping[str, Any]) -> str:
    """The card for people."""
    rows = [(name, about[key]) for name, key in (
        ("architecture", "architecture"), ("parameters", "parameters"), ("type", "dtype"), ("plugins", "tokens"),
        ("adapter", "adapter"), ("source", "source"), ("made by", "made_by"), ("sha256", "sha256"),
    ) if about[key]]  # fmt: skip
    facts = "\n".join(
        f"| {name} | {value if not isinstance(value, list) else ', '.join(value)} |" for name, value in rows
    )
    compared = "\n".join(
        f"| {c['batch']} x {c['height']} x {c['width']} | {c['difference']:.1e} | {c['allowed']:.1e} |"
        for c in about["compared"]
    )
    warning = "\n**Its weights are random: what it says means nothing.**\n" if about["random_weights"] else ""
    return f"""# {about["model"]}
{warning}
`{about["file"]}`, {about["task"].replace("-", " ")}. Licence: {about["license"] or UNKNOWN}.

| | |
| --- | --- |
{facts}

## What goes in and comes out

{", ".join(f"`{n}`" for n in about["inputs"])} -> {", ".join(f"`{n}`" for n in about["outputs"])}; {sizes(about)}

{prepared(about["preprocessing"])}
{usage(about)}
{classes(about["classes"])}## Compared with the network

| images x height x width | differs by | may by |
| --- | --- | --- |
{compared}
"""


def sizes(about: Mapping[str, Any]) -> str:
    said = [
        f"{name} {low}" if low == high else f"{name} {low} to {high}" for name, (low, high) in about["ranges"].items()
    ]
    return f"{about['input_size'][0]} channels, {', '.join(said)}."


def prepared(preprocessing: Mapping[str, Any]) -> str:
    """How an image becomes the input, in words."""
    if "mean" not in preprocessing:
        return "How images are prepared was not stated."
    said = "RGB values in 0 .. 1, minus mean {mean}, over deviation {std}".format(**preprocessing)
    if "crop_pct" in preprocessing:
        side = preprocessing["input_size"][-1]
        said += (
            f"; before that {preprocessing.get('interpolation', 'bilinear')} to {side} / {preprocessing['crop_pct']:g}"
        )
        said += f" pixels of the shorter side, then the {preprocessing.get('crop_mode', 'center')} {side} x {side}"
    if preprocessing.get("shortest"):
        said += f"; before that to {preprocessing['shortest']} pixels of the shorter side, at most "
        said += f"{preprocessing.get('longest')} of the longer"
    return said + "."


def usage(about: Mapping[str, Any]) -> str:
    if len(about["inputs"]) != 1:
        return ""
    shape = [about["ranges"]["batch"][0], *about["input_size"]]
    if about["format"] == "exported-program":
        call = f'torch.export.load("{about["file"]}").module()(torch.randn({shape}, dtype=torch.{about["dtype"]}))'
        return f"\n```python\nimport torch\n\n{call}\n```\n"
    return f"""
```python
import numpy, onnxruntime

session = onnxruntime.InferenceSession("{about["file"]}")
session.run(None, {{"image": numpy.zeros({shape}, numpy.{about["dtype"]})}})
```
"""


def classes(names: list[str], most: int = 20) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more, in the JSON file" if len(names) > most else ""
    return f"## Classes\n\n{len(names)}, in the order of the logits: {'; '.join(names[:most])}{more}.\n\n"
