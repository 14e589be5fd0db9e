"""How the attention of transformers' language models is computed: by our kernels, on what the decoder says of it.

transformers lets a model name a function for its attention, and hands on to it what its layers are called with. Ours is
called "patchloom"; the decoder passes it a `Look`. So the cache, what is seen and what plugins ask for are the same for
every architecture, whatever its release calls its own. A model that transformers itself runs (without a `Look`) works
with it as well.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.attend import attend
from ..kernels.decode import weights
from ..vision.tokens import Probe
from .cache import LayerCache, read, spread
from .stream import Stream

NAME = "patchloom"
NOT_OURS = ("softcap", "s_aux", "head_mask", "position_bias")  # what some architectures want of attention beyond this


@dataclass(frozen=True)
class Look:
    """What one layer's attention is to know: the tokens it takes, where earlier ones are kept, who looks on."""

    stream: Stream
    cache: LayerCache | None = None
    probe: Probe | None = None  # takes "last_attention" (B N) of a whole prompt: of the last real token


def install() -> None:
    """Makes the function known to transformers; a second call changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
              dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None,
              look: Look | None = None, **others: Any) -> tuple[Tensor, None]:  # fmt: skip
    """query (B h N d), key and value (B g M d) -> (B N h d)."""
    if asked := [name for name in NOT_OURS if others.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} wants {' and '.join(asked)} in its attention, which is not computed")
    if look is None:  # transformers runs the model: its own mask and cache
        k, v = spread(key, query.shape[1]), spread(value, query.shape[1])
        causal = attention_mask is None and query.shape[2] > 1 and bool(getattr(module, "is_causal", True))
        return attend(query, k, v, attention_mask, causal=causal, scale=scaling, dropout=dropout).transpose(1, 2), None
    stream, cache = look.stream, look.cache
    reach = key.shape[2] + (0 if cache is None else cache.length)
    if sliding_window is not None and reach > sliding_window:
        raise ValueError(f"a sequence of {reach} tokens is longer than the window of {sliding_window} that "
                         f"{type(module).__name__} attends in; longer ones are not computed")  # fmt: skip
    if look.probe is not None and not stream.past:
        look.probe["last_attention"] = last_attention(query, key, stream, scaling)
    if cache is not None:
        y = cache.attend(query, key, value, stream, scaling)
    else:
        y = read(query, key, value, None, stream, scaling, True, dropout)
    return y.transpose(1, 2), None


def last_attention(q: Tensor, k: Tensor, stream: Stream, scale: float | None) -> Tensor:
    """(B N): how much the last real token of each row attends to each of these tokens, mean over heads."""
    last = stream.last()
    row = q[torch.arange(len(q), device=q.device), :, last][:, :, None]  # B h 1 d
    n = k.shape[2]
    seen = torch.arange(n, device=q.device) <= last[:, None]
    seen = seen if stream.real is None else seen & stream.real
    if stream.segment is not None:
        seen = seen & (stream.segment == stream.segment.gather(1, last[:, None]))
    return weights(row, k, seen[:, None, None], scale=scale).mean(1)[:, 0]
