"""The demo in headless Chromium: every tab with an uploaded picture, every error, by keyboard, at a phone's width. The
screenshots lie in DEMO_SHOTS, else in the test's folder."""

import os
import re
from pathlib import Path
from shutil import which

import pytest
from demo_parts import encoded, picture, runs_in, served

pytest.importorskip("gradio", reason="pip install 'patchloom[demo]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt install chromium)")]
WAIT = 120_000  # milliseconds
TABS = ("Classify", "Find", "Tokens", "Generate", "Chat", "Compare", "Models")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    runs = os.environ.get("DEMO_RUNS") or runs_in(tmp_path_factory.mktemp("runs"))
    with served(Path(runs)) as (_, address):
        yield address


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def shots(tmp_path):
    folder = Path(os.environ.get("DEMO_SHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Page:
    """A visitor's page; `asked`: what it fetched."""

    def __init__(self, browser, address, dark=False, width=1200):
        scheme = "dark" if dark else "light"
        phone = {"is_mobile": True, "has_touch": True, "device_scale_factor": 2} if width < 600 else {}
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, **phone)
        self.page, self.asked, self.width = context.new_page(), [], width
        self.page.set_default_timeout(WAIT)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#classify-go")
        self.page.wait_for_function("() => document.querySelector('#classify-model input')?.value")

    def tab(self, title):
        self.page.get_by_role("tab", name=title).first.click()
        self.page.wait_for_selector(f"#tab-{title.lower()}", state="visible")
        self.page.wait_for_timeout(300)
        assert self.beyond() == [], title

    def give(self, name, data, file="mine.png"):
        kind = {"svg": "image/svg+xml", "gif": "image/gif"}.get(file.rpartition(".")[2], "image/png")
        self.page.locator(f"#{name}-picture input[type=file]").set_input_files(
            {"name": file, "mimeType": kind, "buffer": data}
        )
        self.page.wait_for_selector(f"#{name}-picture img")

    def sample(self, name, number):
        self.page.locator(f"#{name}-samples button").nth(number).click()
        self.page.wait_for_selector(f"#{name}-picture img")

    def choose(self, name, model):
        """In a list of models, by writing its name; nothing where there is no such model."""
        box = self.page.locator(f"#{name}-model input")
        box.click()
        option = self.page.locator("ul[role=listbox] li", has_text=model)
        if option.count():
            option.first.click()
        else:
            box.press("Escape")

    def go(self, name, answer):
        self.page.click(f"#{name}-go")
        self.page.wait_for_selector(answer)

    def text(self, name):
        return self.page.locator(f"#{name}").inner_text()

    def told(self):
        """The error that the page shows, closed again."""
        toast = self.page.locator(".toast-body.error").first
        toast.wait_for()
        text = toast.inner_text()
        toast.locator(".toast-close").click()
        toast.wait_for(state="detached")
        return text

    def beyond(self):
        """What of the tabs lies beyond the page's right edge."""
        return self.page.evaluate(
            """width => [...document.querySelectorAll('#head *, #tasks *')].filter(e => e.offsetParent &&
            e.getBoundingClientRect().right > width + 1).map(e => `${e.tagName} ${e.id} ${e.className}`)""", self.width
        )  # fmt: skip

    def shoot(self, path):
        assert self.beyond() == [], path
        self.page.wait_for_timeout(600)
        self.page.screenshot(path=str(path), full_page=True)


def visit_all(page, shots, name):
    """Each tab with a sample or an uploaded picture; a screenshot of each."""
    page.sample("classify", 1)
    page.go("classify", "#classify-said p")
    page.shoot(shots / f"{name}-classify.png")
    page.tab("Find")
    page.sample("find", 5)
    page.go("find", "#find-drawn img")
    page.shoot(shots / f"{name}-find.png")
    page.tab("Tokens")
    page.sample("tokens", 2)
    page.choose("tokens", "vit/")
    page.go("tokens", "#tokens-drawn img")
    assert "times as fast" in page.text("tokens-said")
    page.shoot(shots / f"{name}-tokens.png")
    page.tab("Generate")
    page.page.locator("#generate-steps input[type=number]").fill("4")
    page.go("generate", "#generate-images img")
    page.shoot(shots / f"{name}-generate.png")
    page.tab("Chat")
    page.sample("chat", 6)
    page.go("chat", "#chat-said .bot")
    page.shoot(shots / f"{name}-chat.png")
    page.tab("Compare")
    page.sample("compare", 4)
    page.go("compare", "#compare-2-figures table")
    assert "MiB" in page.text("compare-1-figures")
    page.shoot(shots / f"{name}-compare.png")
    page.tab("Models")
    assert "Nothing is being trained" in page.text("models-said")
    page.shoot(shots / f"{name}-models.png")


@pytest.mark.parametrize(
    ("name", "dark", "width"), [("light", False, 1200), ("dark", True, 1200), ("phone", False, 390)]
)
def test_every_tab(chromium, address, shots, name, dark, width):
    page = Page(chromium, address, dark, width)
    visit_all(page, shots, name)
    assert {url for url in page.asked if not url.startswith((address, "blob:", "data:"))} == set(), "other servers"
    assert not [url for url in page.asked if re.search(r"/(?:tmp|home|root|work)/", url)]
    dark_page = page.page.evaluate("document.body.classList.contains('dark')")
    assert dark_page == dark


def test_uploads_and_their_errors(chromium, address, shots):
    page = Page(chromium, address)
    page.page.click("#classify-go")
    assert "no picture yet" in page.told()
    shown = {"find": "drawn img", "tokens": "drawn img", "chat": "said .bot", "compare": "2-drawn img"}
    for name, answer in shown.items():
        page.tab(name.capitalize())
        page.page.click(f"#{name}-go")
        assert "no picture yet" in page.told()
        page.give(name, encoded(picture()))
        if name == "tokens":
            page.choose(name, "vit/")
        page.go(name, f"#{name}-{answer}")
    page.tab("Tokens")
    page.choose("tokens", "vit/")
    box = page.page.locator("#tokens-setting input")
    box.fill("tome:q=3")
    box.press("Enter")
    page.page.click("#tokens-go")
    assert "q" in page.told()
    page.tab("Chat")
    page.page.locator("#chat-question textarea").fill("")
    page.page.click("#chat-go")
    assert "empty" in page.told()
    page.tab("Classify")
    page.give("classify", b"MZ" + bytes(300), "setup.png")
    page.page.click("#classify-go")
    page.page.locator(".toast-body.error").first.wait_for()
    page.shoot(shots / "light-error.png")
    assert "not an image" in page.told()


def test_by_keyboard(chromium, address):
    page = Page(chromium, address)
    page.sample("classify", 0)
    page.page.get_by_role("tab", name="Classify").first.focus()
    page.page.keyboard.press("Tab")
    for _ in range(40):
        if page.page.evaluate("document.activeElement?.id") == "classify-go":
            break
        page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement?.id") == "classify-go", "the button is reached by Tab"
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#classify-said p")
    page.page.get_by_role("tab", name="Chat").first.focus()
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#tab-chat", state="visible")
    page.sample("chat", 0)
    page.page.locator("#chat-question textarea").focus()
    page.page.keyboard.press("End")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#chat-said .bot")
