"""Small decoders, streams and pipelines that the tests of the multimodal half are made of."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from golden import golden
from torch import Tensor
from transformers import LlamaConfig

from patchloom.multimodal.connectors import Project
from patchloom.multimodal.decoder import Decoder, decoder
from patchloom.multimodal.stream import Stream, placed
from patchloom.multimodal.tower import Tower
from patchloom.multimodal.vlm import VisionLanguage
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify
from patchloom.vision.zoo import create_model

IMAGE = 95  # the id that stands for an image

LLAMA = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def small_decoder(layers: int = 3, **options: Any) -> Decoder:
    torch.manual_seed(0)
    made = decoder(LlamaConfig(**{**LLAMA, "num_hidden_layers": layers, **options}))
    for parameter in made.parameters():  # else attention is flat, and nothing would depend on it
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1 if parameter.ndim == 1 else 0.2)
    return made.eval()


def decoder_of_record(record: golden.Record) -> Decoder:
    """The record's LLaMA without a head, which no output of it needs."""
    known = LlamaConfig().to_dict()
    made = decoder(LlamaConfig(**{k: v for k, v in record.meta["config"].items() if k in known}))
    made.lm.model.load_state_dict(record.state_dict())
    return made.eval()


def images_in(x: Tensor, spans: Sequence[tuple[int, int]]) -> Stream:
    """The embedded tokens x (B N C), of which those from a to b are an image, for each (a, b)."""
    b, n, _ = x.shape
    image = torch.zeros(b, n, dtype=torch.long)
    for i, (first, end) in enumerate(spans, 1):
        image[:, first:end] = i
    return Stream(x, torch.arange(n).expand(b, -1), image)


def attend_last(streams: Sequence[Stream]) -> Stream:
    """One batch of several rows, padded on the left."""
    most = max(s.x.shape[1] for s in streams)

    def padded(y: Tensor) -> Tensor:
        return torch.cat([y.new_zeros(1, most - y.shape[1], *y.shape[2:]), y], 1)

    real = torch.cat([padded(torch.ones(1, s.x.shape[1], dtype=torch.bool)) for s in streams])
    x, image = (torch.cat([padded(getattr(s, name)) for s in streams]) for name in ("x", "image"))
    return replace(streams[0], x=x, image=image, place=placed(real), real=real)


def small_llava(folder: Path, **text: Any) -> Any:
    """transformers' own LLaVA with random weights that matter, saved into `folder`."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=28, patch_size=7
    )
    language = LlamaConfig(**{**LLAMA, "num_hidden_layers": 3, **text})
    config = LlavaConfig(vision_config=vision, text_config=language, image_token_index=IMAGE)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def small_vlm(name: str | None = None, connector: Any = None, level: int = -1, **options: Any) -> VisionLanguage:
    """With a model of the zoo as its tower, or a plain small ViT (patches of 8, 16 channels)."""
    torch.manual_seed(0)
    if name is None:
        model: Any = Backbone([Stage(Global(2), 16, 3)], Patchify(8, None, position=Position((4, 4), special=1)))
    else:
        model = create_model(name, num_classes=0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return VisionLanguage(Tower(model, level), connector or Project(2), small_decoder(**options), IMAGE).eval()


def small_tokenizer(template: str | None = None) -> Any:
    """Words and single characters of a few sentences, with the special tokens of LLaMA."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = "<pad> <s> </s> <unk> <image> USER : ASSISTANT what is this ? a cat dog red two and".split()  # noqa: SIM905
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    fast.chat_template = template
    return fast
