"""The tabs: what stands where, and which callback a button calls."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from . import merging
from .app import App
from .classify import MAPS, classify
from .compare import KINDS, Side, compare
from .find import classes_of, find
from .making import OWN, SAMPLERS, make, takes
from .starters import STARTERS
from .talk import talk

On = Callable[..., Any]
SHOWN: dict[str, Any] = {"format": "png", "show_label": False, "buttons": ["fullscreen", "download"]}
PROGRESS = gr.Progress()  # as a default, Gradio gives each request its own


def picture_input(app: App, name: str) -> gr.Image:
    """Where a picture is dropped, with samples below."""
    image = gr.Image(
        label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard", "webcam"], height=300,
        elem_id=f"{name}-picture", buttons=["fullscreen"],
    )  # fmt: skip
    gr.Examples(
        [[path] for path in app.samples], [image], label="Samples", elem_id=f"{name}-samples", api_visibility="private"
    )
    return image


def model_input(app: App, page: gr.Blocks, name: str, *kinds: str, label: str = "Model", at: int = 0) -> gr.Dropdown:
    """The models of these kinds, looked for anew when the page is opened or the list is."""

    def now() -> Any:
        names = app.shelf.names(*kinds)
        return gr.Dropdown(choices=names, value=names[min(at, len(names) - 1)] if names else None)

    def listed(value: Any) -> Any:
        names = app.shelf.names(*kinds)
        return gr.Dropdown(choices=names, value=value if value in names else (names[0] if names else None))

    box = gr.Dropdown(
        [], label=label, elem_id=f"{name}-model", info=None if app.shelf.names(*kinds) else "None yet: see Models."
    )
    page.load(now, None, box, queue=False, api_visibility="private")
    box.focus(listed, box, box, queue=False, preprocess=False, api_visibility="private", show_progress="hidden")
    return box


def said(name: str) -> gr.Markdown:
    return gr.Markdown(elem_id=f"{name}-said", elem_classes="said", container=False)


def plain(text: str) -> str:
    """As Markdown shows it unchanged."""
    return escape("".join(f"\\{c}" if c in "\\`*_{}[]#|~$" else c for c in text), quote=False)


def button(name: str, text: str) -> gr.Button:
    return gr.Button(text, variant="primary", elem_id=f"{name}-go")


# ---- one function a tab


def classify_tab(app: App, on: On, page: gr.Blocks) -> None:
    def ask(image: Any, model: Any, kind: Any) -> Any:
        answer = classify(app.shelf, app.limits, app.open(image), model, kind)
        return answer.top, answer.seen, plain(answer.text)

    with gr.Row():
        with gr.Column(min_width=280):
            image = picture_input(app, "classify")
            model = model_input(app, page, "classify", "classify")
            kind = gr.Radio(list(MAPS), value="gradient", label="Where it looks", elem_id="classify-map")
            go = button("classify", "Classify")
        with gr.Column(min_width=280):
            text = said("classify")
            top = gr.Label(label="Likeliest classes", elem_id="classify-top")
            seen = gr.Image(label="As the model sees it", interactive=False, elem_id="classify-seen", **SHOWN)
    on(go.click, ask, [image, model, kind], [top, seen, text])


def find_tab(app: App, on: On, page: gr.Blocks) -> None:
    def ask(image: Any, model: Any, score: Any, only: Any) -> Any:
        found = find(app.shelf, app.limits, app.open(image), model, score, only)
        segments = app.shelf.entry(model, "detect", "segment").kind == "segment"
        headers = ["class", "share"] if segments else ["class", "score", "x", "y", "width", "height"]
        return found.drawn, table(headers, found.rows), plain(found.text)

    def classes(model: Any) -> Any:
        return gr.Dropdown(choices=classes_of(app.shelf, app.limits, model) if model else [], value=[])

    with gr.Row():
        with gr.Column(min_width=280):
            image = picture_input(app, "find")
            model = model_input(app, page, "find", "detect", "segment")
            score = gr.Slider(0, 1, 0.3, step=0.05, label="At least this sure", elem_id="find-score")
            only = gr.Dropdown([], multiselect=True, label="Only these classes (none: all)", elem_id="find-only")
            go = button("find", "Detect or segment")
        with gr.Column(min_width=280):
            text = said("find")
            drawn = gr.Image(label="Found", interactive=False, elem_id="find-drawn", **SHOWN)
            rows = gr.HTML(elem_id="find-rows")
    on(model.change, classes, [model], [only], show_progress="hidden")
    on(go.click, ask, [image, model, score, only], [drawn, rows, text])


def tokens_tab(app: App, on: On, page: gr.Blocks) -> None:
    def ask(image: Any, model: Any, setting: Any) -> Any:
        found = merging.view(app.shelf, app.limits, app.open(image), model, setting)
        return found.drawn, table(("block", "tokens", "patches", "merged", "dropped"), found.rows), plain(found.text)

    with gr.Row():
        with gr.Column(min_width=280, scale=1):
            image = picture_input(app, "tokens")
            model = model_input(app, page, "tokens", "classify")
            setting = gr.Dropdown(
                list(merging.SETTINGS), value=merging.SETTINGS[0], allow_custom_value=True, label="Token plugin",
                info="As on the command line; choose or write.", elem_id="tokens-setting",
            )  # fmt: skip
            go = button("tokens", "Show tokens")
        with gr.Column(min_width=280, scale=2):
            text = said("tokens")
            drawn = gr.Image(label="Kept, merged and dropped", interactive=False, elem_id="tokens-drawn", **SHOWN)
            rows = gr.HTML(elem_id="tokens-rows")
    on(go.click, ask, [image, model, setting], [drawn, rows, text])


def generate_tab(app: App, on: On, page: gr.Blocks) -> None:
    def ask(
        model: Any,
        classes: Any,
        caption: Any,
        count: Any,
        steps: Any,
        scale: Any,
        seed: Any,
        sampler: Any,
        progress: Any = PROGRESS,
    ) -> Any:
        found = make(
            app.shelf, app.limits, model, classes, caption, count=count, steps=steps, guidance=scale, seed=seed,
            sampler=sampler, told=lambda share, text: progress(share, desc=text),
        )  # fmt: skip
        return found.images, plain(found.text)

    def fields(model: Any) -> Any:
        found = takes(app.shelf, app.limits, model) if model else None
        names = found.classes if found else []
        return (
            gr.Dropdown(choices=names, value=names[:2], visible=bool(names)),
            gr.Textbox(visible=bool(found and found.captions)),
            gr.Slider(value=2.0 if found and found.guided else 1.0),
        )

    with gr.Row():
        with gr.Column(min_width=280, scale=1):
            model = model_input(app, page, "generate", "generate")
            classes = gr.Dropdown([], multiselect=True, label="Classes", elem_id="generate-classes")
            caption = gr.Textbox("a red circle left of a blue square", label="Caption", visible=False,
                                 max_length=app.limits.text, elem_id="generate-caption")  # fmt: skip
            count = gr.Slider(1, app.limits.images, 4, step=1, label="Images of each", elem_id="generate-count")
            steps = gr.Slider(1, app.limits.steps, 25, step=1, label="Steps", elem_id="generate-steps")
            scale = gr.Slider(0, 20, 1, step=0.5, label="Guidance (1: none)", elem_id="generate-guidance")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="generate-seed")
            sampler = gr.Dropdown([OWN, *SAMPLERS], value=OWN, label="Sampler", elem_id="generate-sampler")
            with gr.Row():
                go = button("generate", "Generate")
                stop = gr.Button("Stop", elem_id="generate-stop")
        with gr.Column(min_width=280, scale=2):
            text = said("generate")
            gallery = gr.Gallery(
                label="Images",
                columns=4,
                elem_id="generate-images",
                format="png",
                show_label=False,
                buttons=["fullscreen", "download"],
                height="auto",
            )
    inputs = [model, classes, caption, count, steps, scale, seed, sampler]
    on(model.change, fields, [model], [classes, caption, scale], show_progress="hidden")
    running = on(go.click, ask, inputs, [gallery, text])
    stop.click(None, None, None, cancels=[running], api_visibility="private")


def chat_tab(app: App, on: On, page: gr.Blocks) -> None:
    def ask(image: Any, model: Any, question: Any, warmth: Any, before: Any) -> Any:
        upload, before = app.open(image), list(before or [])
        answer = ""
        for answer in talk(app.shelf, app.limits, upload, model, question, before, temperature=warmth):
            now = [*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield now, now, ""

    def anew() -> Any:
        return [], []

    with gr.Row():
        with gr.Column(min_width=280):
            image = picture_input(app, "chat")
            model = model_input(app, page, "chat", "chat")
            warmth = gr.Slider(0, 2, 0, step=0.1, label="Temperature (0: the likeliest word)", elem_id="chat-warmth")
        with gr.Column(min_width=280):
            box = gr.Chatbot(
                label="Conversation", height=360, render_markdown=False, elem_id="chat-said", buttons=["copy"],
                placeholder="Ask something about the picture.", feedback_options=None,
            )  # fmt: skip
            question = gr.Textbox(
                "what colour is the star?", label="Question", max_length=app.limits.text, elem_id="chat-question"
            )
            with gr.Row():
                go, clear = button("chat", "Ask"), gr.Button("New conversation", elem_id="chat-clear")
            state = gr.State([])
    for event in (go.click, question.submit):
        on(event, ask, [image, model, question, warmth, state], [box, state, question])
    for event in (clear.click, image.change, model.change):
        on(event, anew, [], [box, state], queue=False, show_progress="hidden")


def compare_tab(app: App, on: On, page: gr.Blocks) -> None:
    def ask(image: Any, first: Any, second: Any) -> Any:
        return [part for side in compare(app.shelf, app.limits, app.open(image), first, second) for part in parts(side)]

    image = picture_input(app, "compare")
    models, outputs = [], []
    with gr.Row():
        for i, label in enumerate(("One", "The other")):
            models.append(model_input(app, page, f"compare-{i + 1}", *KINDS, label=label, at=i))
    go = button("compare", "Compare")
    with gr.Row():
        for i in (1, 2):
            with gr.Column(min_width=280):
                drawn = gr.Image(label="Answer", interactive=False, elem_id=f"compare-{i}-drawn", **SHOWN)
                top = gr.Label(label="Surest", elem_id=f"compare-{i}-top")
                outputs += [drawn, top, gr.HTML(elem_id=f"compare-{i}-figures")]
    on(go.click, ask, [image, *models], outputs)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """As HTML, whatever the cells hold."""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in headers)
    cells = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    whole = f"<table class='figures'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='wide'>{whole}</div>" if rows else ""


def parts(side: Side) -> tuple[Any, Any, str]:
    rows = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in side.rows)
    return side.drawn, side.top, f"<table class='figures'>{rows}</table>"


def models_tab(app: App, on: On, page: gr.Blocks) -> None:
    def begin(recipe: Any) -> Any:
        return plain(app.trainer.begin(recipe))

    def state() -> str:
        return plain(app.trainer.state())

    def listed() -> str:
        return table(("model", "task"), [[entry.name, entry.kind] for entry in app.shelf.entries()])

    gr.Markdown(
        "Small models of drawn pictures can be trained here; no data is needed, and nothing is fetched. They land "
        "in the folder of runs, as `patchloom fit` puts them there."
    )
    names = [(f"{s.recipe}: {s.text}", s.recipe) for s in STARTERS]
    recipe = gr.Radio(names, value=STARTERS[0].recipe, label="What to train", elem_id="models-recipe")
    go = button("models", "Train")
    text = said("models")
    rows = gr.HTML(elem_id="models-rows")
    on(go.click, begin, [recipe], [text], queue=False)
    clock = gr.Timer(3)
    for event in (clock.tick, page.load):
        on(event, state, None, text, queue=False, show_progress="hidden")
        on(event, listed, None, rows, queue=False, show_progress="hidden")


TABS = {
    "Classify": classify_tab,
    "Find": find_tab,
    "Tokens": tokens_tab,
    "Generate": generate_tab,
    "Chat": chat_tab,
    "Compare": compare_tab,
    "Models": models_tab,
}
