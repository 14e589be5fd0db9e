"""Models as repositories of the Hugging Face hub are laid out, there or in a folder of one's own: model.safetensors,
whose header says what rebuilds the network; config.json, which says the same to other programs, as timm's files do;
README.md, the card. An adapter is its own two files (vision/adapters/files.py) and a card.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...vision.adapters.files import CONFIG as ADAPTER_CONFIG
from ...vision.adapters.files import TENSORS as ADAPTER_TENSORS
from ...vision.adapters.files import is_adapter, read_card
from ...vision.cache import hub_folder, offline_mode
from ...vision.transfer import DownloadError, first_line
from ..running import checkpoint
from ..tables import write_whole
from .card import identity

TENSORS, CONFIG, README = "model.safetensors", "config.json", "README.md"
FILES = (TENSORS, CONFIG, README, ADAPTER_TENSORS, ADAPTER_CONFIG)  # nothing else is fetched
REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class HubError(ValueError):
    """A repository that cannot be written or read; the message says which and why."""


@dataclass(frozen=True)
class Place:
    """A folder, or a repository of the hub at a revision."""

    folder: Path | None = None
    repository: str = ""
    revision: str | None = None

    @classmethod
    def of(cls, words: str, revision: str | None = None) -> "Place":
        """`/…`, `./…`, `../…`, `~/…` and what is there already is a folder, anything else OWNER/NAME on the hub."""
        if words.startswith(("/", "./", "../", "~")) or words in (".", "..") or Path(words).is_dir():
            if revision is not None:
                raise HubError(f"--revision {revision}: folder {words} has no revisions; leave the option out")
            return cls(Path(words).expanduser())
        if REPOSITORY.fullmatch(words) is None or ".." in words:
            raise HubError(f"{words!r} is neither a folder (./DIR) nor OWNER/NAME on the hub")
        return cls(None, words, revision)

    def __str__(self) -> str:
        return str(self.folder) if self.folder is not None else f"{self.repository} of the Hugging Face hub"


# ---- writing


def write_model(spec: str, folder: Path, *, license: str | None = None) -> list[Path]:
    """The files of what `spec` names: a run, a checkpoint, a saved adapter, a published name or NAME=FILE."""
    if is_adapter(spec):
        for name in (ADAPTER_TENSORS, ADAPTER_CONFIG):
            shutil.copyfile(Path(spec) / name, folder / name)
        write_whole(folder / README, adapter_readme(Path(spec), license))
        return [folder / name for name in (ADAPTER_TENSORS, ADAPTER_CONFIG, README)]
    model, classes, preprocessing = checkpoint.load_model(spec)
    name, _, file = spec.partition("=")
    path = None if file else checkpoint.find(name)
    head = (
        checkpoint.header(model, classes, preprocessing)
        if path is None or path.is_dir()
        else checkpoint.read(path)["patchloom"]  # with what a denoiser's says beside
    )
    about = identity(model, name if file else spec, preprocessing)
    about["license"] = license or about["license"]
    if path is not None:
        about |= {"model": about["architecture"], "source": None}
    write_tensors(model, head, folder / TENSORS)
    write_whole(folder / CONFIG, json.dumps(config(model, classes, about, head), indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / README, readme(classes, about, use(model)))
    return [folder / name for name in (TENSORS, CONFIG, README)]


def write_tensors(model: nn.Module, head: Mapping[str, Any], path: Path) -> None:
    """A file that is read as any checkpoint (checkpoint.read)."""
    from safetensors.torch import save

    below = head.get("trunk", {}).get("state", {})
    tensors = model.state_dict() | {f"{checkpoint.TRUNK}{name}": t for name, t in below.items()}
    apart = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    write_whole(path, save(apart, {"format": "pt", "patchloom": json.dumps(plain(head))}))


def plain(head: Mapping[str, Any]) -> dict[str, Any]:
    """The header without tensors."""
    below = {key: value for key, value in head.get("trunk", {}).items() if key != "state"}
    return {**head, **({"trunk": below} if "trunk" in head else {})}


def config(model: nn.Module, classes: list[str], about: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's config.json says, by its names, and the header."""
    count = getattr(model, "num_classes", None)
    return {
        "architecture": about["architecture"],
        "num_classes": len(classes) if count is None else count,
        "num_features": getattr(model, "num_features", None),
        "label_names": classes,
        "pretrained_cfg": about["preprocessing"],
        "license": about["license"],
        "library_name": "patchloom",
        "made_by": about["made_by"],
        "patchloom": plain(head),
    }


def front(license: str | None, tags: list[str], **more: str) -> str:
    """What the hub reads at the head of a card."""
    known = license is not None and re.fullmatch(r"[a-z0-9.-]+", license.lower())
    said = {} if license is None else {"license": license.lower()} if known else {"license": "other"}
    rows = [f"{key}: {json.dumps(value)}" for key, value in ({"library_name": "patchloom"} | said | more).items()]
    rows += [f"license_name: {json.dumps(license)}"] if license is not None and not known else []
    return "\n".join(["---", *rows, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def use(model: nn.Module) -> str:
    """The command that asks the model something, once it lies in the folder `model`."""
    if hasattr(model, "predictions"):  # a denoiser
        return "generate --checkpoint model"
    if hasattr(model, "image_token"):
        return "chat model --image photo.jpg"
    return "predict model photo.jpg" + (' --named "a circle" "a star"' if hasattr(model, "of_texts") else "")


def readme(classes: list[str], about: Mapping[str, Any], command: str) -> str:
    from .card import UNKNOWN, prepared
    from .card import classes as listed

    source = f" Its weights come from {about['source']}." if about["source"] else ""
    return f"""{front(about["license"], ["patchloom"])}
# {about["model"]}

A {about["architecture"]} of {about["parameters"]:,} parameters. Licence: {about["license"] or UNKNOWN}.{source}

{prepared(about["preprocessing"])}

```
patchloom pull OWNER/NAME --out model
patchloom {command}
```

{listed(classes)}Written by {about["made_by"]}.
"""


def adapter_readme(folder: Path, license: str | None) -> str:
    from .card import UNKNOWN
    from .card import classes as listed

    card = read_card(folder)
    return f"""{front(license, ["patchloom", "adapter"], base_model=card.backbone)}
# {card.words} for {card.backbone}

{card.parameters:,} numbers that go onto the weights of {card.backbone} with digest
{card.trunk or "not stated"}. Licence: {license or UNKNOWN}.

```
patchloom pull OWNER/NAME --out adapter
patchloom predict {card.backbone} photo.jpg --adapter adapter
```

{listed(card.classes)}"""


def is_ours(folder: Path) -> bool:
    """Whether the folder holds a model that `push` or `pull` put there, whatever state it is in."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(said, dict) and "patchloom" in said


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, whose files go there once the block is through: a repository that was there
    keeps them until then. Raises HubError where `folder` holds something else."""
    if folder.is_file():
        raise HubError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not is_adapter(folder) and not is_ours(folder):
        raise HubError(f"folder {folder} holds something else than a model's repository; name another, or an empty one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as part:
        yield Path(part)
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(part).iterdir()):
            os.replace(file, folder / file.name)
            written.add(file.name)
        for name in set(FILES) - written:  # of a model where an adapter lies now, say
            (folder / name).unlink(missing_ok=True)


def push(spec: str, place: Place, *, license: str | None = None, private: bool = False, message: str = "") -> str:
    """Writes what `spec` names to `place`; where it lies now."""
    if place.folder is not None:
        if private or message:
            raise HubError("--private and --message are for the hub; a folder has neither")
        with staged(place.folder) as part:
            write_model(spec, part, license=license)
        return str(place.folder)
    refuse_offline(place)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    with tempfile.TemporaryDirectory() as part:
        write_model(spec, Path(part), license=license)
        api = HfApi()
        try:
            api.create_repo(place.repository, private=private, exist_ok=True)
            made = api.upload_folder(
                repo_id=place.repository, folder_path=part, revision=place.revision,
                commit_message=message or f"{Path(spec).name}, by patchloom",
            )  # fmt: skip
        except LocalTokenNotFoundError as error:
            raise HubError(f"cannot push to {place}: nobody is logged in here (hf auth login)") from error
        except (HfHubHTTPError, OSError) as error:
            raise HubError(f"cannot push to {place}: {first_line(error)}") from error
    return str(made)


# ---- reading


def pull(place: Place, out: Path) -> Path:
    """Brings the repository at `place` to the folder `out`, where every command takes it for a model. It is loaded
    first: one that is damaged, or that this suite did not write, is refused and leaves `out` as it was."""
    with staged(out) as part:
        found = place.folder if place.folder is not None else fetched(place)
        names = [name for name in FILES if (found / name).is_file()]
        for name in names:
            shutil.copyfile(found / name, part / name)
        check(part, names, place)
    return out


def check(folder: Path, names: list[str], place: Place) -> None:
    """Raises HubError where the files are no model of this suite."""
    if ADAPTER_CONFIG in names and ADAPTER_TENSORS in names and TENSORS not in names:
        read_card(folder)
        return
    if not {TENSORS, CONFIG} <= set(names):
        missing = " and ".join(name for name in (TENSORS, CONFIG) if name not in names)
        raise HubError(f"{place} has no {missing}: it is no model that patchloom push wrote")
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(f"{place}: {CONFIG} is no JSON ({first_line(error)})") from error
    if not isinstance(said, dict) or "patchloom" not in said:
        raise HubError(
            f"{place} is a repository of {library(said)}, "
            "which patchloom push did not write: NAME=FILE takes published weights, timm:hf-hub:OWNER/NAME timm's"
        )
    if plain(checkpoint.read(folder / TENSORS).get("patchloom", {})) != said["patchloom"]:
        raise HubError(f"{place}: {CONFIG} and {TENSORS} describe different networks; push it again")
    checkpoint.load_model(str(folder))


def library(said: Any) -> str:
    """Whose repository it is."""
    return str(said["library_name"]) if isinstance(said, dict) and said.get("library_name") else "others"


def fetched(place: Place) -> Path:
    """The files of a repository, in the cache of huggingface_hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                place.repository,
                revision=place.revision,
                cache_dir=hub_folder(),
                allow_patterns=list(FILES),
                local_files_only=offline_mode(None),
            )
        )
    except LocalEntryNotFoundError as error:
        raise DownloadError(f"{place} is not in the cache, and there is no connection to fetch it by") from error
    except (HfHubHTTPError, OSError) as error:
        raise DownloadError(f"cannot fetch {place}: {first_line(error)}") from error


def refuse_offline(place: Place) -> None:
    if offline_mode(None):
        raise HubError(f"cannot push to {place}: this is offline; push to a folder (./DIR)")
