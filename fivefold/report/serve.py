"""A comparison's page, served on this machine alone while rows come in.

Nothing is worked out but when a page is open and asks for it, and then for at most `SHARE` of one core's time, at low
priority: what trains beside it is being timed. What a row opens into is sent when it is opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fivefold.errors import FivefoldError, RunError
from fivefold.report import folder, page, progress, rows, table

HOST, PORT, PORTS = "127.0.0.1", 8050, 50  # the first of these that is free
SHARE = 0.05
EVERY = 1.0  # seconds between two looks at the folder, at least
_NICE = 10
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
_POLICY += "connect-src 'self'"


class Served:
    """What is said of one folder: the page, made anew where something in the folder is, and what runs."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.shelf = directory, rows.Shelf(directory)
        self.guard = threading.Lock()
        self.seen: Any = None
        self.version, self.due = "", 0.0
        self.content: page.Content | None = None
        self.text = ""

    def html(self) -> str:
        """The page as it is now."""
        with self.guard:
            self._look()
            if not self.text:
                with self._sparing():
                    self.text = page.render(self._content(), served=self.version)
            return self.text

    def live(self, opened: set[str]) -> dict[str, str]:
        """Which version of the page there is, and what runs; at once, also while the page is being made."""
        if self.guard.acquire(blocking=False):
            try:
                self._look()
            finally:
                self.guard.release()
        found = progress.read(self.directory)
        running = progress.render(self.directory, found, opened) if found else ""
        return {"version": self.version, "running": running}

    def detail(self, label: str) -> str:
        """What a row opens into; KeyError where there is no such row."""
        with self.guard:
            return page.detail(self._content(), label)

    def parquet(self) -> bytes:
        """The table."""
        with self.guard:
            return table.encoded("parquet", table.frame(self._content().rows), "")

    def _look(self) -> None:
        """See whether the folder holds something new, when it is time to."""
        if time.monotonic() < self.due:
            return
        with self._sparing():
            found = progress.read(self.directory)
            logs = [self.directory / "runs" / job.name / "log.jsonl" for job in found.running] if found else []
            files = [*logs, self.directory / folder.RACE, self.directory / folder.SETTINGS]
            seen = self.shelf.stamps(), [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
            if seen != self.seen:
                self.seen, self.content, self.text = seen, None, ""
                self.version = str(time.time_ns())  # never that of another server of the folder

    def _content(self) -> page.Content:
        if self.content is None:
            found = progress.read(self.directory)
            self.content = rows.content(self.shelf, progress.rows(self.directory, found) if found else ())
        return self.content

    @contextlib.contextmanager
    def _sparing(self) -> Iterator[None]:
        """What is done here is not done again before it has become a small share of the time."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        self.due = max(self.due, now + max(EVERY, (now - began) / SHARE))


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of the page, of what is new, of a row's details and of the table."""

    def __init__(self, served: Served, *about: Any) -> None:
        self.served = served
        super().__init__(*about)

    def do_GET(self) -> None:
        host, asked = self.headers.get("Host", ""), urlsplit(self.path)
        given = parse_qs(asked.query)
        if host.rpartition(":")[0] not in (HOST, "localhost"):  # another site's name that leads here
            return self._answer(403, "text/plain", f"only {HOST} is served")
        try:
            if asked.path == "/":
                self._answer(200, "text/html", self.served.html())
            elif asked.path == "/live":
                self._answer(200, "application/json", json.dumps(self.served.live(set(given.get("open", ())))))
            elif asked.path == "/detail" and "label" in given:
                self._answer(200, "text/html", self.served.detail(given["label"][0]))
            elif asked.path == "/table.parquet" and table.has_parquet():
                self._answer(200, "application/vnd.apache.parquet", self.served.parquet())
            elif asked.path == "/favicon.ico":
                self._answer(204, "image/x-icon", b"")
            else:
                self._answer(404, "text/plain", "there is no such page")
        except KeyError:
            self._answer(404, "text/plain", "there is no such row")
        except (FivefoldError, OSError) as error:  # a file that is being changed: the page asks again
            with contextlib.suppress(OSError):
                self._answer(503, "text/plain", str(error))

    def _answer(self, code: int, kind: str, content: str | bytes) -> None:
        body = content if isinstance(content, bytes) else content.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind if isinstance(content, bytes) else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the comparison's."""


def server(directory: str | Path, port: int | None = None) -> ThreadingHTTPServer:
    """A server of a comparison's page, on this machine's own address, that does not answer yet.

    Args:
        directory: the comparison's.
        port: to be reached at; 0 takes any, None the first free one from 8050 on.

    Raises:
        RunError: the folder holds no comparison, or the port is taken.
    """
    return _bound(port, partial(_Handler, Served(folder.comparison(directory))))


def free_port(port: int | None) -> int:
    """The port that `server` would take, for one that cannot be made yet; RunError where it is taken."""
    with _bound(port, BaseHTTPRequestHandler) as found:
        return found.server_address[1]


def _bound(port: int | None, handler: Callable[..., BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    for wanted in range(PORT, PORT + PORTS) if port is None else [port]:
        with contextlib.suppress(OSError):
            return ThreadingHTTPServer((HOST, wanted), handler)
    taken = f"the ports from {PORT} to {PORT + PORTS - 1} are" if port is None else f"port {port} is"
    raise RunError(f"{taken} taken or not allowed: give another --port")


def address(found: ThreadingHTTPServer) -> str:
    """Where a server is reached."""
    return f"http://{HOST}:{found.server_address[1]}/"


@contextlib.contextmanager
def serving(found: ThreadingHTTPServer) -> Iterator[str]:
    """While this is open the server answers, beside what else is done; where it is reached."""
    thread = threading.Thread(target=work, args=(found,), daemon=True)
    thread.start()
    try:
        yield address(found)
    finally:
        found.shutdown()
        found.server_close()
        thread.join()


def work(found: ThreadingHTTPServer) -> None:
    """Answer, at low priority, until the server is shut down."""
    with contextlib.suppress(OSError):  # of this thread and those it starts alone, where the system can
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    found.serve_forever(poll_interval=0.1)
