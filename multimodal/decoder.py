"""A causal language model of transformers as a stack of layers with seams, its attention computed by our kernels."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..vision.adapters import settle
from ..vision.plugins import SeamError
from ..vision.tokens import Probe
from .attention import NAME, Look, install
from .cache import Cache, LayerCache
from .stream import Stream


@dataclass(frozen=True)
class Anatomy:
    """Where an architecture of transformers keeps its parts, as paths in the causal language model."""

    embed: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str | None = "model.norm"
    rotary: str | None = "model.rotary_emb"  # gives (cos, sin) for position ids
    table: str | None = None  # embeddings of positions, added to those of tokens
    before: str | None = None  # a layer between embeddings and the first layer
    after: str | None = None  # one behind the last norm
    head: str = "lm_head"
    projections: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


OPT = "model.decoder."
ANATOMIES: dict[str, Anatomy] = {
    **{name: Anatomy() for name in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3", "gemma")},
    "phi3": Anatomy(projections=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")),
    "opt": Anatomy(
        OPT + "embed_tokens", OPT + "layers", OPT + "final_layer_norm", None, OPT + "embed_positions",
        OPT + "project_in", OPT + "project_out",
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"),
    ),
}  # fmt: skip


class LayerSeams(nn.Module):
    """Where plugins may be put at one layer of a decoder; each is None, or a module:

    before_block  Stream -> Stream
    after_block   (Stream, probe) -> Stream; probe holds what the layer `offers`
    keeping       room -> LayerCache: what the layer keeps of keys and values; the decoder's own keeps all
    """

    seams = ("before_block", "after_block", "keeping")
    offers = ("last_attention",)

    def __init__(self) -> None:
        super().__init__()
        self.before_block: nn.Module | None = None
        self.after_block: nn.Module | None = None
        self.keeping: nn.Module | None = None


@dataclass(frozen=True)
class Layer:
    """A layer of a decoder that plugins may be put into, and where it stands."""

    name: str
    block: LayerSeams
    index: int  # counted from 0
    depth: int  # of the decoder
    dim: int  # channels of its tokens
    layer: nn.Module  # of transformers, which `run` runs

    def refuse(self, why: str, module: nn.Module | None = None) -> SeamError:
        """The error that says why a plugin cannot be put here."""
        return SeamError(f"{self.name}: {type(self.block if module is None else module).__name__} {why}")


@dataclass(frozen=True)
class Configuration:
    """What a causal language model of transformers is made of, as the text of its config.json."""

    text: str

    def build(self) -> nn.Module:
        """The model with fresh weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        install()
        config = AutoConfig.for_model(**json.loads(self.text))
        lm = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)  # type: ignore[no-untyped-call]
        return cast(nn.Module, lm)


class Decoder(nn.Module):
    """embedded tokens -> states behind the last norm; `logits` makes words of them.

    `lm` is a causal language model of transformers, of one of `ANATOMIES`, or what one is made of; its layers run as
    they are, but for their attention. `layers` are its layers, `seams` what plugins are put into beside them.
    Raises ValueError for an architecture that is not known, or one of whose layers needs more than attention.
    """

    def __init__(self, lm: nn.Module | Configuration):
        super().__init__()
        lm = lm.build() if isinstance(lm, Configuration) else lm
        config: Any = lm.config
        if config.model_type not in ANATOMIES:
            raise ValueError(f"no decoder for language models of type {config.model_type!r}; there are "
                             f"{', '.join(ANATOMIES)}")  # fmt: skip
        install()
        cast(Any, lm).set_attn_implementation(NAME)
        self.lm, self.anatomy = lm, ANATOMIES[config.model_type]
        self.dim: int = config.hidden_size
        self.width: int = getattr(config, "word_embed_proj_dim", None) or config.hidden_size  # of what is embedded
        self.vocabulary: int = config.vocab_size
        self.context: int = config.max_position_embeddings
        self.heads: int = config.num_attention_heads
        self.groups: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.grad_checkpointing = False
        self.seams = nn.ModuleList(LayerSeams() for _ in self.layers)
        self.plugins: tuple[Any, ...] = ()  # what is attached (multimodal/plugins)
        self.adapters: Any = None  # what tunes it (vision/adapters)
        for layer in self.layers:
            declare(layer, self.anatomy.projections)

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make it anew, without weights."""
        return {"lm": Configuration(cast(Any, self.lm).config.to_json_string())}

    def hosts(self) -> list[Layer]:
        """Where plugins may be put (vision/plugins)."""
        seams = [s for s in self.seams if isinstance(s, LayerSeams)]
        both = zip(seams, self.layers, strict=True)
        return [Layer(f"layer {i}", s, i, len(seams), self.dim, layer) for i, (s, layer) in enumerate(both)]

    def part(self, path: str | None) -> Any:
        """The part of the language model at that path; None where the architecture has none."""
        return None if path is None else attrgetter(path)(self.lm)

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.part(self.anatomy.layers))

    def rooms(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The paths, a dot behind each, of the layers' attention and of the layers (vision/adapters/lora_targets)."""
        blocks = tuple(f"lm.{self.anatomy.layers}.{i}." for i in range(self.depth))
        return tuple(f"{block}self_attn." for block in blocks), blocks

    def train(self, mode: bool = True) -> "Decoder":
        """As `nn.Module.train`; what an adapter froze stays in evaluation mode."""
        super().train(mode)
        settle(self)
        return self

    @property
    def depth(self) -> int:
        return len(self.seams)

    def cache(self, room: int = 64, make: Callable[[int, int], LayerCache] | None = None) -> Cache:
        """An empty one for this decoder; `room`: how many tokens are to come behind the prompt. `make` makes what a
        layer keeps; without it the plugin in the layer's seam does, where there is one."""
        return Cache(self.depth, room, self.keep if make is None else make)

    def keep(self, index: int, room: int) -> LayerCache:
        keeping: Any = self.seams[index].keeping
        return LayerCache(room) if keeping is None else keeping(room)

    def embed(self, ids: Tensor) -> Tensor:
        """(B N) -> (B N width)"""
        return cast(Tensor, self.part(self.anatomy.embed)(ids))

    def logits(self, x: Tensor) -> Tensor:
        """(… C) -> (… vocabulary)"""
        return cast(Tensor, self.part(self.anatomy.head)(x))

    def forward(self, stream: Stream, cache: Cache | None = None) -> Stream:
        """Through all layers and the last norm. With a cache the tokens come behind those it holds, and join them;
        plugins may let out fewer tokens than came in: `place` says which are there."""
        self.check(stream, cache)
        if cache is not None:
            cache.read += stream.x.shape[1]
        stream = self.entered(stream)
        for i, (layer, seams) in enumerate(zip(self.layers, self.seams, strict=True)):
            assert isinstance(seams, LayerSeams)
            if seams.before_block is not None:
                stream = seams.before_block(stream)
            stream = self.sighted(stream)
            probe: Probe | None = None if seams.after_block is None else {}
            look = Look(stream, None if cache is None else cache.layers[i], probe)
            stream = replace(stream, x=run(layer, stream.x, look, self.grad_checkpointing))
            if seams.after_block is not None:
                stream = seams.after_block(stream, probe)
        return replace(stream, x=self.left(stream.x))

    def check(self, stream: Stream, cache: Cache | None) -> None:
        if cache is not None and len(cache.layers) != self.depth:
            raise ValueError(f"a cache for {len(cache.layers)} layers does not fit a decoder of {self.depth}")
        if stream.segment is not None and cache is not None:
            raise ValueError("several samples packed into one row are trained on, not generated from: no cache")
        if stream.past and cache is None:
            raise ValueError(f"these tokens come behind {stream.past} others, whose cache is missing")
        if cache is not None and cache.read != stream.past:
            raise ValueError(f"these tokens come behind {stream.past} others, and the cache has read {cache.read}")

    def entered(self, stream: Stream) -> Stream:
        x, a = stream.x, self.anatomy
        if (before := self.part(a.before)) is not None:
            x = before(x)
        if (table := self.part(a.table)) is not None:
            x = x + table(None, position_ids=stream.place).to(x.dtype)
        rotary = self.part(a.rotary)
        turns = None if rotary is None else rotary(x, position_ids=stream.place)
        return replace(stream, x=x, rotary=turns)

    def left(self, x: Tensor) -> Tensor:
        for path in (self.anatomy.norm, self.anatomy.after):
            if (layer := self.part(path)) is not None:
                x = layer(x)
        return x

    def sighted(self, stream: Stream) -> Stream:
        """With `bias` where a whole prompt needs one; behind a cache the layers' own caches know."""
        if stream.bias is not None or stream.past:
            return stream
        bias = stream.sight()
        return stream if bias is None else replace(stream, bias=bias)


def run(layer: nn.Module, x: Tensor, look: Look, saved: bool = False) -> Tensor:
    """A layer of transformers on the tokens x (B N C) of `look.stream`; `saved`: by activation checkpointing."""
    stream = look.stream
    given: dict[str, Any] = {"attention_mask": None, "position_ids": stream.place, "look": look}
    if stream.rotary is not None:
        given["position_embeddings"] = stream.rotary
    if saved and torch.is_grad_enabled() and look.cache is None:
        y: Any = checkpoint(layer, x, use_reentrant=False, **given)
    else:
        y = layer(x, **given)
    return cast(Tensor, y[0] if isinstance(y, tuple) else y)  # a tuple in older releases


def declare(layer: nn.Module, paths: tuple[str, ...]) -> None:
    """Says on the modules of transformers which of their layers adapters may stand around, as ours say."""
    for owner in dict.fromkeys(path.rpartition(".")[0] for path in paths):
        names = tuple(path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == owner)
        layer.get_submodule(owner).projections = names  # type: ignore[assignment]


def decoder(config: Any, dtype: torch.dtype | None = None) -> Decoder:
    """A decoder with fresh weights, of a configuration of transformers."""
    made = Decoder(Configuration(config.to_json_string()))
    return made if dtype is None else made.to(dtype)


def open_decoder(name: str, dtype: torch.dtype | None = None) -> Decoder:
    """A language model of transformers by local path or name."""
    from transformers import AutoModelForCausalLM

    install()
    return Decoder(AutoModelForCausalLM.from_pretrained(name, attn_implementation=NAME, dtype=dtype or "auto"))
