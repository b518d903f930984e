"""uvicorn's WebSocket protocol, with a short cut for frames: no queue and no task between the socket and a stream.

A stream attaches itself and is handed each frame as it is read; what it cannot take now waits in uvicorn's queue, and
uvicorn stops reading. Opening, closing and pings are uvicorn's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.http11 import Request

from tidegate.transports.http.stream import FRAMES

if TYPE_CHECKING:
    from tidegate.transports.http.stream import SessionStream


class FrameProtocol(WebSocketsSansIOProtocol):
    """One client's connection; to the application it shows itself as the extension ``FRAMES`` of the scope."""

    _stream: SessionStream | None = None

    def attach(self, stream: SessionStream) -> None:
        """Hand frames to ``stream`` from now on, but behind those that wait already."""
        self._stream = stream

    def can_write(self) -> bool:
        """Whether the client keeps up with what it is sent."""
        return self.writable.is_set()

    def write(self, text: bytes) -> None:
        """Send a frame of text; nothing where the client has left or is leaving."""
        if self.transport.is_closing():
            return
        try:
            self.conn.send_text(text)
        except InvalidState:
            return
        self.transport.write(b"".join(self.conn.data_to_send()))

    # ---- what uvicorn calls

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            extensions = cast("dict[str, object]", self.scope["extensions"])
            extensions[FRAMES] = self

    def send_receive_event_to_app(self) -> None:
        stream = self._stream
        size = sum(map(len, self.frames))
        if stream is None or self.close_sent or not self.queue.empty() or not stream.can_take(size):
            super().send_receive_event_to_app()
            return
        try:
            data = self._joined()
        except UnicodeDecodeError:
            super().send_receive_event_to_app()  # closes, as the protocol demands
            return
        self.frames = []
        stream.take(data)

    def _joined(self) -> str | bytes:
        data = b"".join(self.frames)
        return data.decode() if self.curr_msg_data_type == "text" else data

    def resume_writing(self) -> None:
        super().resume_writing()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._flush()

    def _flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()
