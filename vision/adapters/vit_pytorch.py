"""A ViT under the names of VPT's code (github.com/KMnP/vpt, as in ViT-pytorch): query, key and value apart."""

BLOCK, OURS = r"transformer\.encoder\.layer\.(\d+)\.", r"backbone.stages.0.blocks.\1."
PARTS = (("query", 1), ("key", 2), ("value", 3))

RENAME = (
    (r"transformer\.embeddings\.position_embeddings", "backbone.stem.position.table"),
    (r"transformer\.embeddings\.cls_token", "backbone.stem.position.tokens.0"),
    (r"transformer\.embeddings\.patch_embeddings\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
    (BLOCK + r"attention_norm\.(weight|bias)", OURS + r"norm1.\2"),
    (BLOCK + r"ffn_norm\.(weight|bias)", OURS + r"norm2.\2"),
    *((BLOCK + rf"attn\.{name}\.(weight|bias)", OURS + rf"mixer.qkv.\2[{part}/3]") for name, part in PARTS),
    (BLOCK + r"attn\.out\.(weight|bias)", OURS + r"mixer.proj.\2"),
    (BLOCK + r"ffn\.(fc[12])\.(weight|bias)", OURS + r"ffn.\2.\3"),
    (r"transformer\.encoder\.encoder_norm\.(weight|bias)", r"norm.\1"),
)  # `head` is called as in the family's own rules
