"""A control.sock that answers as it is told: for tests of the command line.

Each request is kept in `requests`; `answers` maps a command to its replies, in order, `turns` to
those of the first time, of the second, and so on. The
command "smtp" is then talked to by `smtp`, a function on the connected socket.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from relayd.cli.main import main
from relayd.master.frames import Decoder, Frame, done, encode, refused


class ControlSocket:
    """Listens at FOLDER/control.sock in a thread, until it is closed."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[Frame] = []
        self.answers: dict[str, Sequence[Frame]] = {}
        self.turns: dict[str, list[Sequence[Frame]]] = {}
        self.smtp: Callable[[socket.socket], None] = lambda _: None
        self.config = folder / "relayd.toml"
        self.config.write_text(
            f'[server]\nruntime_dir = "{folder}"\n[spool]\nurl = "sqlite:///{folder}/spool.db"\n'
        )
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(folder / "control.sock"))
        self._sock.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def asked(self) -> list[Mapping[str, object]]:
        """Return the requests without their version."""
        return [{k: v for k, v in one.items() if k != "v"} for one in self.requests]

    def relayd(self, *words: str) -> int:
        """Run a command against this socket; returns its exit code."""
        return relayd("--config", str(self.config), *words)

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            with sock:
                self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        for request in Decoder().feed(sock.recv(65536)):
            self.requests.append(request)
            command = str(request["command"])
            if self.turns.get(command):
                self.answers[command] = self.turns[command].pop(0)
            for reply in self.answers.get(command, (refused("not foreseen by the test"),)):
                sock.sendall(encode(reply))
            if command == "smtp" and "smtp" in self.answers:
                self.smtp(sock)

    def close(self) -> None:
        """Stop listening."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def relayd(*words: str) -> int:
    """Run the command line in this process; returns its exit code."""
    try:
        return main(list(words))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else -1


class Terminal(io.StringIO):
    """Something typed, or shown, on a terminal."""

    def isatty(self) -> bool:
        """Be one."""
        return True


def pages(*results: Frame) -> list[Frame]:
    """Return replies of which all but the last say that more follows."""
    return [done(one, more=number < len(results)) for number, one in enumerate(results, 1)]
