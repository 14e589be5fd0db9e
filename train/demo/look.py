"""How the page looks: no font or script of another server, light and dark by the visitor's own setting."""

from typing import Any

CSS = """
.gradio-container {max-width: 1180px !important; margin: auto !important}
#head h1 {margin-bottom: 0; letter-spacing: -0.02em}
#head p {margin-top: 0.2rem; opacity: 0.8}
.said {font-size: 1.02rem; min-height: 1.4rem}
.figures {width: 100%; border: 0 !important; border-collapse: collapse; font-variant-numeric: tabular-nums}
.figures th, .figures td, .figures tr {border: 0 !important; background: none !important}
.figures th {text-align: left; font-weight: 600; opacity: 0.7; padding: 0.3rem 0.8rem 0.3rem 0; white-space: nowrap;
  vertical-align: top}
.figures td {padding: 0.3rem 0.8rem 0.3rem 0; overflow-wrap: anywhere}
.figures tr + tr, .figures thead + tbody tr {border-top: 1px solid var(--border-color-primary) !important}
button:focus-visible, input:focus-visible, textarea:focus-visible, [role=tab]:focus-visible {
  outline: 2px solid var(--color-accent) !important; outline-offset: 2px}
.wide {overflow-x: auto}
@media (max-width: 640px) {
  .gradio-container div, .gradio-container main {min-width: 0 !important}
  #generate-images .grid-wrap, #generate-images {height: auto !important; max-height: none !important}
  #generate-images .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}
  .figures th, .figures td {white-space: normal; padding-right: 0.5rem; font-size: 0.85rem}
  .gradio-container {padding: 0.5rem !important}
  .gradio-container button.lg {min-height: 44px}
  /* Gradio puts tabs that find no room into a menu, which then lies below them; told that all have room, they wrap */
  #tasks .tab-container.visually-hidden button {width: 8px; min-width: 0; padding: 0; overflow: hidden}
  #tasks .tab-wrapper, #tasks .tab-container[role=tablist] {height: auto; overflow: visible; flex-wrap: wrap}
  #tasks [role=tab] {min-height: 40px; padding: 0 0.7rem}
}
"""
HEAD = (
    '<meta name="viewport" content="width=device-width, initial-scale=1, minimum-scale=1">'  # no wider than the phone
)
GROUNDS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")


def theme() -> Any:
    import gradio as gr

    return gr.themes.Soft(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=GROUNDS,
        font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"), radius_size="md",
    )  # fmt: skip
