"""The page on which models are tried: plain functions, one file a tab, and `page.py`, which alone knows Gradio."""
