"""The demo as it is served: one click in each tab, what is refused at the door, what goes out."""

import json
import re

import pytest

pytest.importorskip("gradio", reason="pip install 'patchloom[demo]'")

from demo_parts import COLOURS, Visitor, at_once, bomb, encoded, hostile, picture, runs_in, served


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with served(runs_in(tmp_path_factory.mktemp("runs")), upload=4 << 20, queue=15) as (app, address):
        yield app, address


@pytest.fixture
def visitor(page):
    return Visitor(page[1])


def answer(message):
    assert message["success"], message["output"]
    return message["output"]["data"]


def test_every_tab_answers(visitor):
    file = visitor.file(encoded(picture()))
    assert file["path"].startswith("/uploads/")
    top, seen, said = answer(
        visitor.click("classify-go", {"classify-picture": file, "classify-model": "colours/1"})
    )  # fmt: skip
    assert top["label"] == "blue"
    assert "blue" in said
    assert visitor.get(f"/gradio_api/file={seen['path']}").startswith(b"\x89PNG")
    drawn, rows, _ = answer(
        visitor.click("find-go", {"find-picture": file, "find-model": "mask/1", "find-score": 0, "find-only": []})
    )
    assert "<td>square</td>" in rows or "<td>circle</td>" in rows
    assert visitor.get(f"/gradio_api/file={drawn['path']}")
    _, rows, said = answer(
        visitor.click("tokens-go", {"tokens-picture": file, "tokens-model": "vit/1", "tokens-setting": "tome:r=3"})
    )
    assert re.findall(r"block \d</td><td>(\d+)", rows) == ["14", "11", "8"]
    asked = {"generate-model": "dit/1", "generate-classes": ["star"], "generate-count": 2, "generate-steps": 2}
    images, said = answer(visitor.click("generate-go", asked))
    assert [image["caption"] for image in images] == ["star", "star"]
    conversation, _, question = answer(
        visitor.click("chat-go", {"chat-picture": file, "chat-model": "vlm/1", "chat-question": "what is it?"})
    )
    assert [m["role"] for m in conversation] == ["user", "assistant"]
    assert question == ""
    asked = {"compare-picture": file, "compare-1-model": "vit/1", "compare-2-model": "fpn/1"}
    assert "MiB" in answer(visitor.click("compare-go", asked))[2]


def test_errors_are_told_in_the_page(visitor):
    nothing = visitor.click("classify-go", {"classify-model": "colours/1"})
    assert not nothing["success"]
    assert "no picture yet" in nothing["output"]["error"]
    file = visitor.file(encoded(picture()))
    for button, values, words in (
        ("classify-go", {"classify-model": "/etc/passwd"}, "choose one"),
        ("tokens-go", {"tokens-model": "colours/1"}, "Pool"),
        ("generate-go", {"generate-model": "dit/1", "generate-steps": 9999}, "from 1 to 250"),
        ("chat-go", {"chat-model": "vlm/1", "chat-question": " "}, "empty"),
        ("compare-go", {"compare-1-model": "vit/1", "compare-2-model": None}, "choose a model"),
    ):
        name = f"{button.removesuffix('-go')}-picture"
        told = visitor.click(button, {**({name: file} if name in visitor.parts else {}), **values})
        assert not told["success"]
        assert words in told["output"]["error"]


@pytest.mark.parametrize("name", [n for n in hostile() if n != "bomb.png"])
def test_hostile_files(visitor, name):
    data, refusal = hostile()[name]
    status, text = visitor.upload(data, name)
    assert status == 200, text
    path = json.loads(text)[0]
    assert ".." not in path
    file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    said = visitor.click("classify-go", {"classify-picture": file, "classify-model": "colours/1"})
    assert said["success"] == (not refusal)
    if refusal:
        assert refusal in said["output"]["error"]


def test_the_bomb_is_too_large_before_it_is_opened(visitor):
    file = visitor.file(bomb(), "bomb.png")
    said = visitor.click("classify-go", {"classify-picture": file, "classify-model": "colours/1"})
    assert "too large" in said["output"]["error"]
    status, text = visitor.upload(bytes(6 << 20), "long.png")
    assert status == 413
    assert "too large" in text
    status, text = visitor.upload(bytes((4 << 20) + 1000), "a little long.png")
    assert status == 413


def test_no_path_of_this_machine_goes_out_and_none_is_read(page, visitor, tmp_path):
    app, _ = page
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture()))
    for path in ("/", "/config", "/gradio_api/info"):
        text = visitor.get(path).decode()
        assert str(app.folder) not in text
        assert not re.findall(r"/(?:root|home|tmp|work|usr)/\w+", text)
    for path in (str(secret), "/etc/passwd", "../../etc/passwd", "/uploads/../secret", "/uploads/x/../../etc/passwd",
                 "http://127.0.0.1:9/x", "https:/127.0.0.1/x", "//127.0.0.1/x", "%2Fetc%2Fpasswd"):  # fmt: skip
        for route in ("/gradio_api/file=", "/gradio_api/file/"):
            status, text = visitor.status(route + path)
            assert status in (400, 403, 404, 405), (route, path, status)
            assert str(app.folder) not in text
    for path in (str(secret), "/etc/passwd", "/uploads/../../../etc/passwd"):
        file = {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
        said = visitor.click("classify-go", {"classify-picture": file, "classify-model": "colours/1"})
        assert not said["success"]
        assert str(app.folder) not in json.dumps(said)
    file = {"path": "http://127.0.0.1:9/x.png", "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    status, text, _ = visitor.join("classify-go", {"classify-picture": file, "classify-model": "colours/1"})
    assert status == 400
    assert "not fetched" in text


def test_what_makes_no_sense_is_refused_and_the_page_lives_on(visitor):
    for body in (b"", b"{", b"[]", b"{}", b'{"data": "x", "fn_index": 3}', b'{"data": [], "fn_index": 9999}',
                 b"[" * 100_000, bytes(2 << 20)):  # fmt: skip
        status, _ = visitor.status("/gradio_api/queue/join", body)
        assert 400 <= status < 600
    assert answer(visitor.click("generate-go", {"generate-model": "dit/1", "generate-steps": 1}))


def test_several_at_once_get_their_own(visitor):

    def ask(i):
        name, colour = list(COLOURS.items())[i % 3]
        mine = Visitor(visitor.address)
        file = mine.file(encoded(picture(colour, (64 + i, 48))))
        return name, answer(mine.click("classify-go", {"classify-picture": file, "classify-model": "colours/1"}))[0]

    for name, top in at_once(6, ask):
        assert top["label"] == name


def test_it_listens_on_this_machine_only(visitor):
    assert visitor.address.startswith("http://127.0.0.1:")
    assert not visitor.config.get("is_colab")
    assert visitor.config.get("analytics_enabled") is False
