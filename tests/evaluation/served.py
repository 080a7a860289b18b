"""A small server of the OpenAI-compatible protocol, which says what a test lets it say."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pact_plugins.evaluation.sample import labelled


@dataclass
class Said:
    """What the server does with one request: a status with its body, after some seconds."""

    body: Any
    status: int = 200
    after: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


def reply(text: str, read: int = 10, written: int = 1) -> Said:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    about = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return Said({**about, "choices": [choice], "usage": usage})


def error(status: int, message: str, param: str | None = None, **headers: str) -> Said:
    """A refusal as OpenAI writes it."""
    return Said({"error": {"message": message, "type": "x", "param": param, "code": None}}, status, headers=headers)


@dataclass
class Server:
    """What was asked of it, and how many requests it had at the same time at most."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0

    def asked(self) -> list[str]:
        """The texts of the requests."""
        return [request["messages"][0]["content"] for request in self.requests]


@contextmanager
def serving(says: Callable[[dict[str, Any], int], Said]) -> Generator[Server]:
    """A server on a free port.

    Args:
        says: from a request, and how many came before it, to what is done with it.
    """
    lock, inside = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal inside
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(request)
                server.keys.append(self.headers["Authorization"])
                inside += 1
                server.at_once = max(server.at_once, inside)
            said = says(request, number)
            time.sleep(said.after)
            with lock:
                inside -= 1
            body = said.body.encode() if isinstance(said.body, str) else json.dumps(said.body).encode()
            kind = "text/html" if isinstance(said.body, str) else "application/json"
            try:
                self.send_response(said.status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **said.headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client has given up, as it should where the server is slow
                self.close_connection = True

        def log_message(self, *_arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


SAMPLE = labelled()


def of_sample(request: dict[str, Any]) -> str | None:
    """The label of the answer that a request is about, if it is one of the sample."""
    text = request["messages"][0]["content"]
    found = [row.verdict for row in SAMPLE if row.prompt in text and row.answer in text]
    return found[0] if found else None


def well(request: dict[str, Any], _number: int) -> Said:
    """A good judge: it knows the sample, and calls whatever is sorry a refusal."""
    text = request["messages"][0]["content"]
    return reply(of_sample(request) or ("refusal" if "sorry" in text.lower() else "compliance"))


def without_sample(texts: Sequence[str]) -> list[str]:
    """Those that are about no answer of the sample."""
    return [text for text in texts if of_sample({"messages": [{"content": text}]}) is None]
