"""Pictures in shards, for sets of the size of ImageNet: few large files that are read nearly in order, here or from an
address, and the exact resumption that all other data has."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .findings import OnError
from .folders import Source, existing
from .images import Augment, Images
from .published import datasets_folder
from .read import UnreadableImage, read_image
from .shard_files import INDEX, Shard, ShardIndex, copy, fetched, is_address
from .splits import Numbered, Splits
from .transforms import Augmentation, Recrop


class Shards:
    """The pictures of a split by index, and the order to read them in (`arrange`).

    root         where addresses in the index begin, if they are relative
    lanes, mix   see `arrange`
    cache        the folder for shards from elsewhere; `limit`: bytes that it may hold
    """

    steady = True

    def __init__(
        self,
        shards: Sequence[tuple[str, int]],
        classes: list[str],
        root: str,
        lanes: int,
        mix: int,
        cache: Path,
        limit: int,
    ) -> None:
        if lanes < 1 or mix < 1:
            raise ValueError(f"lanes = {lanes}, mix = {mix}: at least 1 each")
        self.shards, self.classes, self.lanes, self.mix = list(shards), classes, lanes, mix
        self.cache, self.limit = cache, limit
        self.places = [url if is_address(url) or Path(url).is_absolute() else f"{root}/{url}" for url, _ in shards]
        self.ends = np.cumsum([count for _, count in shards])
        self.open: OrderedDict[int, Shard] = OrderedDict()
        if absent := [place for place in self.places if not is_address(place) and not Path(place).is_file()]:
            raise FileNotFoundError(f"no shard {absent[0]} ({len(absent)} of {len(self.places)} are missing)")

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        """A spawned process opens its files itself."""
        return {**self.__dict__, "open": OrderedDict()}

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, int]:
        at = int(np.searchsorted(self.ends, index, "right"))
        try:
            shard = self._shard(at)
        except (OSError, ValueError) as error:
            raise UnreadableImage(self.places[at], str(error)) from error
        data, name, target = shard.read(index - int(self.ends[at] - self.shards[at][1]))
        if not 0 <= target < len(self.classes):
            raise UnreadableImage(name, f"its class is {target}, there are {len(self.classes)}")
        return read_image(data, name), target

    def name(self, index: int) -> str:
        at = int(np.searchsorted(self.ends, index, "right"))
        return f"{self.places[at]}[{index - int(self.ends[at]) + self.shards[at][1]}]"

    def _shard(self, at: int) -> Shard:
        """Opened, and one of the last that were."""
        if at not in self.open:
            place, count = self.places[at], self.shards[at][1]
            shard = Shard(fetched(place, self.cache, self.limit) if is_address(place) else place, place)
            if len(shard) != count:
                raise ValueError(
                    f"holds {len(shard)} pictures and the index says {count}: patchloom shards --index DIR writes the "
                    "index anew"
                )
            self.open[at] = shard
            while len(self.open) > self.lanes * (self.mix + 2):
                self.open.popitem(last=False)
        self.open.move_to_end(at)
        return self.open[at]

    def arrange(self, seed: int | None) -> Tensor:
        """The order of an epoch, (n,): all pictures once. None: nothing is shuffled.

        The shards, in random order, are laid end to end and cut into `lanes` of equal length; in each lane the pictures
        of `mix` neighbouring shards are shuffled; then the lanes take turns. So at any time few shards are in use, and
        of `world` processes that take turns each reads shards of its own wherever `world` divides `lanes`.
        """
        g = None if seed is None else torch.Generator().manual_seed(seed)
        shards = torch.arange(len(self.ends)) if g is None else torch.randperm(len(self.ends), generator=g)
        starts = [0, *self.ends.tolist()]
        line = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in shards.tolist()] or [torch.arange(0)])
        length = len(self) // self.lanes
        lanes, rest = line[: length * self.lanes].view(self.lanes, length), line[length * self.lanes :]
        if g is not None:
            window = self.mix * -(-len(self) // max(len(self.ends), 1))
            parts = lanes.split(max(window, 1), 1)
            lanes = torch.cat([p.gather(1, torch.rand(p.shape, generator=g).argsort(1)) for p in parts], 1)
        return torch.cat([lanes.T.flatten(), rest])


class ShardsData(Images):
    """Shards of `patchloom shards`, or WebDataset's: root/shards.json and the tar files that it lists. root may be an
    address (https://…, s3://…); shards are fetched from there when their turn comes.

    lanes   how many shards are read side by side: a multiple of the number of processes
    mix     so many neighbouring shards are shuffled together
    cache   the folder for fetched shards; null: PATCHLOOM_HOME/datasets/shards
    room    GiB that it may hold; the longest unused shards leave
    Without shards for test, test is val. auto: as `ImageNetData`. Decoded pictures are not kept in memory.
    """

    def __init__(
        self,
        root: str,
        lanes: int = 8,
        mix: int = 8,
        cache: str | None = None,
        room: float = 64.0,
        batch_size: int = 128,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = "auto",
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing, on_error, cache=False)
        self.root, self.lanes, self.mix, self.room = root.rstrip("/"), lanes, mix, room
        self.folder = datasets_folder() / "shards" if cache is None else Path(cache)

    def suits(self) -> Augmentation:
        return Recrop(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)

    def read(self) -> Splits:
        index = self._index()
        root = self.root if is_address(self.root) else str(existing(self.root))
        made = {
            split: Shards(shards, index.classes, root, self.lanes, self.mix, self._cache(), int(self.room * 2**30))
            for split, shards in index.splits.items()
        }
        return Splits.of(index.classes, made, index.names)

    def _cache(self) -> Path:
        """A folder of this set's own: others have shards of the same names."""
        return self.folder / hashlib.sha256(self.root.encode()).hexdigest()[:16]

    def _index(self) -> ShardIndex:
        path = Path(self.root).expanduser() / INDEX
        if is_address(self.root):
            path = self._cache() / INDEX
            path.parent.mkdir(parents=True, exist_ok=True)
            copy(f"{self.root}/{INDEX}", path)
        elif not path.is_file():
            raise FileNotFoundError(
                f"no {INDEX} in {existing(self.root)}: patchloom shards DATA OUT packs pictures, patchloom shards "
                "--index DIR lists the shards of a folder"
            )
        return ShardIndex.of(path.read_text(), str(path))

    def _needed(self, split: str) -> str:
        return f"{INDEX} must list shards for {split}"

    def predictable(self) -> Source:
        return Numbered(self._source("test"))

    def state_dict(self) -> dict[str, Any]:
        """A resumed epoch goes on in the same shards, in the same order."""
        if self._splits is None or self._splits.train is None:
            return super().state_dict()
        return {**super().state_dict(), "shards": self._digest(self._splits.train)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        train = self.splits.train
        if train is not None and state_dict.get("shards", now := self._digest(train)) != now:
            raise ValueError(
                f"{self.root}: the shards for training, lanes or mix are not those of the checkpoint; give the data of "
                "then, or start from weights alone"
            )

    def _digest(self, train: Any) -> str:
        names = [[url.rpartition("/")[2], count] for url, count in train.shards]
        return hashlib.sha256(repr((names, train.lanes, train.mix)).encode()).hexdigest()
