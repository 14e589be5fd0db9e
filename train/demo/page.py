"""The page in Gradio: the tabs around the callbacks, and how it is served."""

import os
from collections.abc import Callable, Iterator
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from . import tabs
from .app import TOLD, App, in_words
from .gate import Gate
from .look import CSS, HEAD, theme

TITLE = """# patchloom
Try each task on your own picture. What you upload stays on {where}, and is deleted within the hour."""
EVENT = {"concurrency_id": "models", "concurrency_limit": 2, "preprocess": False, "api_visibility": "private"}


def told(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The callback, whose errors the page shows as sentences. Of bugs Gradio says that there was an error, and prints
    them into the terminal."""

    if isgeneratorfunction(callback):

        @wraps(callback)
        def generating(*values: Any) -> Iterator[Any]:
            try:
                yield from callback(*values)
            except TOLD as error:
                raise shown(error) from error

        return generating

    @wraps(callback)
    def calling(*values: Any) -> Any:
        try:
            return callback(*values)
        except TOLD as error:
            raise shown(error) from error

    return calling


def shown(error: Exception) -> gr.Error:
    return gr.Error(in_words(error), duration=20, title="That did not work", print_exception=False)


def build(app: App, where: str = "this machine") -> gr.Blocks:
    """The page, not yet served. What its components write goes into the app's folder."""
    os.environ["GRADIO_TEMP_DIR"] = str(app.folder)  # which Gradio reads when components are made
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

    def on(event: Callable[..., Any], callback: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> Any:
        return event(told(callback), inputs, outputs, **{**EVENT, **options})

    with gr.Blocks(title="patchloom", analytics_enabled=False, delete_cache=(300, 1800)) as page:
        gr.Markdown(TITLE.format(where=where), elem_id="head")
        with gr.Tabs(elem_id="tasks"):
            for title, tab in tabs.TABS.items():
                if title != "Models" or app.trains:
                    with gr.Tab(title, id=title.lower(), elem_id=f"tab-{title.lower()}"):
                        tab(app, on, page)
    return page


def serve(app: App, *, port: int | None = None, share: bool = False, browser: bool = False) -> tuple[gr.Blocks, str]:
    """(the page, its address), served in threads of its own on 127.0.0.1."""
    page = build(app, "the machine that serves this page" if share else "this machine")
    page.queue(max_size=app.limits.queue, default_concurrency_limit=2, api_open=False)
    gate = Middleware(Gate, folder=app.folder, upload=app.limits.upload + (1 << 20))  # the form's other parts
    _, local, public = page.launch(
        server_name="127.0.0.1", server_port=port, share=share, inbrowser=browser, show_error=False, quiet=True,
        prevent_thread_lock=True, max_file_size=app.limits.upload, ssr_mode=False, pwa=False, mcp_server=False,
        enable_monitoring=False, run_history=False, footer_links=["settings"], state_session_capacity=500,
        app_kwargs={"middleware": [gate], "openapi_url": None}, theme=theme(), css=CSS, head=HEAD,
    )  # fmt: skip
    return page, public or local
