"""What stands before Gradio's own routes: requests that would make the server fetch something, or send it too much, are
turned away, and no path of this machine goes out."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

BODY = 1 << 20  # bytes of a request that is no upload
SPILLED = 1 << 28  # bytes that are read, and thrown away, before a connection is cut
ALIAS = "/uploads"  # what the folder of uploads is called outside
OUTSIDE = ("http:", "https:", "//", "ftp:", "data:")
TEXTS = (b"text/html", b"application/json", b"text/event-stream")


class Gate:
    """ASGI middleware. `folder`: where uploads and results lie; `upload`: bytes that an upload may have, with all its
    parts."""

    def __init__(self, app: ASGI, folder: Path, upload: int):
        self.app, self.folder, self.upload = app, str(folder), upload

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = unquote(scope["path"])
        if "/file=" in path or "/file/" in path:
            wanted = path.partition("/file=")[2] or path.partition("/file/")[2]
            if wanted.strip().lower().startswith(OUTSIDE):
                await refuse(send, 403, "only files of this page are served")
                return
            inside = scope["path"].replace(f"={ALIAS}/", f"={self.folder}/", 1)
            scope = {**scope, "path": inside, "raw_path": quote(inside).encode()}
        send = self.hiding(send)
        if scope["method"] == "POST":
            await self.posted(scope, receive, send, uploads=path.rstrip("/").endswith("/upload"))
        else:
            await self.app(scope, receive, send)

    async def posted(self, scope: Message, receive: Receive, send: Send, uploads: bool) -> None:
        most = self.upload if uploads else BODY
        length = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = f"too large: at most {most:,} bytes are taken"
        if length.isdigit() and int(length) > most:
            await spilled(receive)
            await refuse(send, 413, too_large)
        elif uploads:
            await self.app(scope, bounded(receive, most), send)
        elif (body := await whole(receive, most)) is None:
            await refuse(send, 413, too_large)
        elif (inside := self.inside(body)) is None:
            await refuse(send, 400, "pictures are uploaded: addresses are not fetched")
        else:
            headers = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
            headers.append((b"content-length", str(len(inside)).encode()))
            await self.app({**scope, "headers": headers}, again(inside, receive), send)

    def inside(self, body: bytes) -> bytes | None:
        """The JSON with its files' paths as they are here; None where one is an address."""
        try:
            content = json.loads(body)
        except ValueError:  # Gradio says what it thinks of it
            return body
        waiting, changed = [content], False
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if isinstance(path, str):
                    if path.strip().lower().startswith(OUTSIDE):
                        return None
                    if path.startswith(ALIAS + "/"):
                        value["path"], changed = self.folder + path[len(ALIAS) :], True
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
        return json.dumps(content).encode() if changed else body

    def hiding(self, send: Send) -> Send:
        """Sends texts with the alias in place of the folder: whole ones once complete, streams as they come."""
        start: Message = {}
        parts: list[bytes] = []
        shown = [(form.encode(), ALIAS.encode()) for form in {self.folder, quote(self.folder), quote(self.folder, "")}]

        def hidden(body: bytes) -> bytes:
            for folder, alias in shown:
                body = body.replace(folder, alias)
            return body

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                kind = dict(message["headers"]).get(b"content-type", b"")
                start["text"] = kind.startswith(TEXTS)
                start["stream"] = kind.startswith(b"text/event-stream") or not start["text"]
                if start["stream"]:
                    await send(message)
            elif message["type"] != "http.response.body" or not start["text"]:
                await send(message)
            elif start["stream"]:
                await send({**message, "body": hidden(message.get("body", b""))})
            else:
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body = hidden(b"".join(parts))
                    headers = [(k, v) for k, v in start["headers"] if k != b"content-length"]
                    headers.append((b"content-length", str(len(body)).encode()))
                    await send({"type": "http.response.start", "status": start["status"], "headers": headers})
                    await send({"type": "http.response.body", "body": body})

        return sending


async def whole(receive: Receive, most: int) -> bytes | None:
    """The body; None where it is longer."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


async def spilled(receive: Receive) -> None:
    """Lets the rest of the body go by, so that the sender gets to the answer; not without end."""
    size, more = 0, True
    while more and size < SPILLED:
        message = await receive()
        size += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)


def again(body: bytes, receive: Receive) -> Receive:
    """The body once more, in one piece; then whatever else comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def bounded(receive: Receive, most: int) -> Receive:
    """Ends the connection where more comes than was said."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= most else {"type": "http.disconnect"}

    return counted


async def refuse(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text, "error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
