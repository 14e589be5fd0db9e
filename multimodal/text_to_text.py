"""An encoder-decoder language model of transformers (BART, T5), with what adapters want to know of it."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..vision.adapters import settle
from ..vision.adapters.beside import Sublayer
from .attention import NAME, install
from .decoder import declare

KNOWN = ("bart", "t5")


class TextToText(nn.Module):
    """Embedded text (B N C) and the words of the answer so far (B M) -> logits (B M vocabulary).

    lm: BartForConditionalGeneration or T5ForConditionalGeneration; its layers run as they are. `tasks` is a seam of
    adapters for several tasks. Raises ValueError for another architecture.
    """

    seams = ("tasks",)

    def __init__(self, lm: nn.Module):
        super().__init__()
        config: Any = lm.config
        if config.model_type not in KNOWN:
            raise ValueError(f"no encoder-decoder of type {config.model_type!r}; there are {', '.join(KNOWN)}")
        if config.model_type == "bart":  # T5's attention has a bias of its own
            install()
            cast(Any, lm).set_attn_implementation(NAME)
        self.lm, self.dim, self.vocabulary = lm, cast(int, config.d_model), cast(int, config.vocab_size)
        self.kind: str = config.model_type
        self.context: int | None = config.max_position_embeddings if self.kind == "bart" else None
        self.begin: int = config.decoder_start_token_id
        self.pad: int = config.pad_token_id
        self.tasks: nn.Module | None = None
        self.adapters: Any = None  # what tunes it (vision/adapters)
        for path in self.rooms()[0]:
            attention = self.get_submodule(path.removesuffix("."))
            names = ("q_proj", "k_proj", "v_proj", "out_proj") if self.kind == "bart" else ("q", "k", "v", "o")
            declare(attention, names)
        for s in self.sublayers():
            if s.kind == "ffn":
                owner = self.get_submodule(s.end.rpartition(".")[0])
                declare(owner, tuple(n for n in ("fc1", "fc2", "wi", "wi_0", "wi_1", "wo") if hasattr(owner, n)))

    def train(self, mode: bool = True) -> "TextToText":
        """As `nn.Module.train`; what an adapter froze stays in evaluation mode."""
        super().train(mode)
        settle(self)
        return self

    def blocks(self) -> list[tuple[str, bool]]:
        """(path, whether it is the decoder's) of all blocks."""
        inner = ("lm.model", "layers") if self.kind == "bart" else ("lm", "block")
        return [
            (f"{inner[0]}.{half}.{inner[1]}.{i}", half == "decoder")
            for half in ("encoder", "decoder")
            for i in range(len(cast(nn.ModuleList, self.get_submodule(f"{inner[0]}.{half}.{inner[1]}"))))
        ]

    def sublayers(self) -> list[Sublayer]:
        """Self-attention, cross-attention and MLP of all blocks, for adapters that stand behind them."""
        found = []
        for block, decodes in self.blocks():
            if self.kind == "bart":
                parts = [("self_attn", "self_attn.out_proj"), ("encoder_attn", "encoder_attn.out_proj")][: 1 + decodes]
                found += [Sublayer(f"{block}.{end}", "mixer", f"{block}.{n}_layer_norm", self.dim) for n, end in parts]
                found.append(Sublayer(f"{block}.fc2", "ffn", f"{block}.final_layer_norm", self.dim))
            else:
                ends = ["SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"]
                for i, end in enumerate(ends if decodes else [ends[0], ends[2]]):
                    layer = f"{block}.layer.{i}"
                    kind = "ffn" if end.startswith("Dense") else "mixer"
                    found.append(Sublayer(f"{layer}.{end}", kind, f"{layer}.layer_norm", self.dim))  # type: ignore[arg-type]
        return found

    def rooms(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The paths, a dot behind each, of attention and of the blocks (vision/adapters/lora_targets)."""
        mixers = tuple(s.end.rpartition(".")[0] + "." for s in self.sublayers() if s.kind == "mixer")
        return mixers, tuple(f"{block}." for block, _ in self.blocks())

    def embed(self, ids: Tensor) -> Tensor:
        """(B N) -> (B N C)"""
        return cast(Tensor, cast(Any, self.lm).get_input_embeddings()(ids))

    def forward(self, x: Tensor, real: Tensor | None, answer: Tensor) -> Tensor:
        """`real` (B N) is False for padding; `answer` (B M) begins with `begin`."""
        mask = torch.ones(x.shape[:2], dtype=torch.long, device=x.device) if real is None else real.long()
        out = self.lm(inputs_embeds=x, attention_mask=mask, decoder_input_ids=answer, use_cache=False)
        return cast(Tensor, out.logits)

    @torch.inference_mode()
    def generate(self, x: Tensor, real: Tensor | None, most: int, stop: int) -> list[Tensor]:
        """The likeliest words, one after the other, for each row; without `stop`, which ends them."""
        mask = torch.ones(x.shape[:2], dtype=torch.long, device=x.device) if real is None else real.long()
        ids = cast(Any, self.lm).generate(
            inputs_embeds=x, attention_mask=mask, max_new_tokens=most, do_sample=False, num_beams=1, eos_token_id=stop,
            decoder_start_token_id=self.begin, pad_token_id=self.pad, forced_bos_token_id=None,
            forced_eos_token_id=None,
        )[:, 1:]  # fmt: skip
        return [row[: ended(row.tolist(), stop)] for row in ids]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        new = hasattr(self.lm, "activation_checkpointing_enable")  # what later releases call it
        name = f"{'activation' if new else 'gradient'}_checkpointing_{'enable' if enable else 'disable'}"
        getattr(self.lm, name)(*([{"use_reentrant": False}] if enable else []))


def ended(words: Sequence[int], stop: int) -> int:
    """How many words stand before `stop`."""
    return list(words).index(stop) if stop in words else len(words)
