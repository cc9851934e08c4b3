"""What the tests and the hand-run checks share: a script with other constants, and a web server that misbehaves."""

import hashlib
import random
import resource
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent


def command(script, **constants):
    """Name of a script and constants -> the command that runs it with them, as if they had been edited."""
    lines = [f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {script} as stage",
             *(f"stage.{name} = {value!r}" for name, value in constants.items()), "stage.main()"]
    return [sys.executable, "-u", "-c", "\n".join(lines)]


def write_sums(folder):
    """Writes SHA256SUMS.txt of all files below the folder, in PhysioNet's form."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "SHA256SUMS.txt")
    (Path(folder) / "SHA256SUMS.txt").write_text("".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(folder).as_posix()}\n" for path in files))


@contextmanager
def files_up_to(size):
    """Within, no file can grow beyond so many bytes: what a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder):
    """Folder -> dict of file name -> bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


class Handler(BaseHTTPRequestHandler):
    """Answers GET with a file of server.folder, or part of it, after the next of the faults that are planned for its name.

    Faults: "ok"; "slow"; "cut" and "cut without length" end in the middle of the file; "wrong" sends wrong bytes; "close"
    answers nothing; "whole" ignores the range asked for; "in an hour" is a 429 that asks to wait; a number is a status.
    """
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, name = self.server, unquote(self.path).lstrip("/")
        server.asked.append((name, self.headers.get("Range")))
        fault = server.next_fault(name)
        path = server.folder / name
        if isinstance(fault, int) or not path.is_file():
            return self.answer(fault if isinstance(fault, int) else 404, b"",
                               {"Retry-After": "0"} if fault in (429, 503) else {})
        if fault == "in an hour":
            return self.answer(429, b"", {"Retry-After": "3600"})
        if fault == "close":
            self.close_connection = True
            return
        body, start = path.read_bytes(), 0
        if (wanted := self.headers.get("Range")) and fault != "whole":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.answer(416, b"", {})
        body = body[start:]
        if fault == "wrong":
            body = bytes([body[0] ^ 255]) + body[1:]
        self.answer(206 if wanted and fault != "whole" else 200, body, {}, fault)

    def answer(self, status, body, headers, fault="ok"):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == "cut without length":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault.startswith("cut"):
            body, self.close_connection = body[:len(body) // 2], True
        for i in range(0, len(body), 4096):
            self.wfile.write(body[i:i + 4096])
            self.server.sent += len(body[i:i + 4096])
            if self.server.victim and self.server.sent >= self.server.kill_after:
                self.server.victim.kill()
                self.server.victim = None
            time.sleep(.05 if fault == "slow" else 0)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """A server of a folder on the loopback address; use it in a `with` block.

    faults: dict of file name -> list of faults for its first requests; random_faults: those that any request may meet; victim:
    a process that is killed when kill_after bytes have been sent.
    """
    daemon_threads = True

    def __init__(self, folder, faults=None, random_faults=(), seed=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.random_faults, self.random = Path(folder), list(random_faults), random.Random(seed)
        self.planned, self.met, self.asked = {name: list(of) for name, of in (faults or {}).items()}, Counter(), []
        self.in_a_row, self.sent, self.victim, self.kill_after = defaultdict(int), 0, None, 0
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def next_fault(self, name):
        fault = self.planned[name].pop(0) if self.planned.get(name) else "ok"
        if self.random_faults and self.in_a_row[name] < 2:   # at most two in a row for a file
            fault = self.random.choice(self.random_faults)
        self.in_a_row[name] = 0 if fault in ("ok", "slow", "whole") else self.in_a_row[name] + 1
        self.met[fault] += 1
        return fault

    def handle_error(self, *_):
        pass   # a killed or refused client breaks its connection

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
