"""One call: its messages, its metadata and its end, as grpc.aio's ``ServicerContext`` offers them to a servicer.

The servicer runs in the task that the ASGI server made for the request. `read` and `write` await the server's own
``receive`` and ``send`` and make no task or future of their own; so a slow reader holds its servicer back.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, NoReturn

import grpc
from grpc import aio

from tidegate.errors import InvalidInputError, TidegateError, TooLargeError
from tidegate.slices import in_slices
from tidegate.transports.asgi import Event, Receive, Scope, Send
from tidegate.transports.grpc.framing import Base64Reader, MessageReader, pack, pack_trailers
from tidegate.transports.grpc.metadata import (
    Fields,
    Metadatum,
    decode_metadata,
    encode_metadata,
    encode_status,
    parse_timeout,
)

EOF: Final = aio.EOF  # type: ignore[attr-defined]
Metadata = Iterable[tuple[str, str | bytes]]

_ENCODINGS = {
    grpc.Compression.NoCompression: "identity",
    grpc.Compression.Deflate: "deflate",
    grpc.Compression.Gzip: "gzip",
}
_OK = grpc.StatusCode.OK, ""
_END: Event = {"type": "http.response.body"}
_OK_TRAILERS: Event = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}


class Wire:
    """How a content type carries messages and trailers: gRPC by HTTP's own trailers, gRPC-Web in a last frame."""

    def __init__(self, content_type: str) -> None:
        self.is_web = content_type.startswith("application/grpc-web")
        self.is_text = content_type.startswith("application/grpc-web-text")
        self._content_type = content_type.encode()
        self.plain_start = self.start([])

    def start(self, fields: Fields, *, is_whole: bool = False) -> Event:
        """Return the event that starts a response; with ``is_whole`` no trailers follow."""
        headers = [(b"content-type", self._content_type), *fields]
        has_trailers = not self.is_web and not is_whole
        return {"type": "http.response.start", "status": 200, "headers": headers, "trailers": has_trailers}


class Call(aio.ServicerContext[Any, Any]):
    """A call under way.

    Args:
        scope: The request's.
        receive: Its body. One task at a time may read.
        send: Its response. One task at a time may write.
        fields: Its header fields by name.
        wire: How its client speaks.
        limit: Bytes of a message at most, either way.
        clock: Monotonic seconds.
        on_refused: Told of the error where a message is refused.
    """

    # What few calls change stands here and costs the others nothing.
    has_begun = False
    is_cancelled = False
    is_interrupted = False
    _status: tuple[grpc.StatusCode, str] = _OK
    _trailing: Metadata = ()
    _trailing_fields: Fields | tuple[()] = ()
    _initial: Fields | tuple[()] = ()
    _encoding = "identity"
    _is_next_plain = False
    _is_half_closed = False
    _is_started = False
    is_finished = False
    _deadline: float | None = None
    _timer: asyncio.TimerHandle | None = None
    _text: Base64Reader | None = None
    _metadata: tuple[Metadatum, ...] | None = None
    _callbacks: tuple[Callable[[Any], None], ...] = ()

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        fields: Mapping[bytes, bytes],
        wire: Wire,
        limit: int,
        clock: Callable[[], float],
        on_refused: Callable[[str, TidegateError], None],
    ) -> None:
        self.path: str = scope["path"]
        self.fields: list[tuple[bytes, bytes]] = scope["headers"]
        self.task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        self._scope = scope
        self._receive = receive
        self._send = send
        self._fields = fields
        self._wire = wire
        self._limit = limit
        self._clock = clock
        self._on_refused = on_refused

    def begin(
        self, deserialize: Callable[[bytes], Any] | None, serialize: Callable[[Any], bytes] | None, max_request: int
    ) -> None:
        """Prepare to read and write a method's messages, requests of so many bytes, and start the client's deadline.

        Raises:
            InvalidInputError: The client's deadline is malformed.
            NotSupportedError: Its compression is unknown.
        """
        self._deserialize = deserialize
        self._serialize = serialize
        self._reader = MessageReader(max_request, self._fields.get(b"grpc-encoding", b"identity").decode("latin-1"))
        if self._wire.is_text:
            self._text = Base64Reader()
        timeout = self._fields.get(b"grpc-timeout")
        if timeout is not None:
            seconds = parse_timeout(timeout)
            self._deadline = self._clock() + seconds
            self._timer = self.task.get_loop().call_later(seconds, self._expire)
        self.has_begun = True

    # Messages. Each of `read`, `write` and `reply` is one coroutine that does it all: a further one costs 0.2 µs.

    async def read(self) -> Any:
        """Return the client's next message, `EOF` once it has half-closed.

        Raises:
            InvalidInputError: It is malformed.
            TooLargeError: It is over the limit, as sent or unpacked.
        """
        reader = self._reader
        try:
            raw = reader.take()
            while raw is None:
                if self._is_half_closed:
                    if reader.is_empty:
                        return EOF
                    raise InvalidInputError("the body ends within a message", reason="BAD_MESSAGE")
                event = await self._receive()
                if event["type"] != "http.request":
                    self._leave()
                self._is_half_closed = not event.get("more_body", False)
                chunk = event.get("body", b"")
                raw = reader.take(chunk if self._text is None else self._text.decode(chunk))
            if not isinstance(raw, bytes):
                raw = await in_slices(raw)
        except TidegateError as error:
            self._refused(error)
            raise
        if self._deserialize is None:
            return raw
        try:
            return self._deserialize(raw)
        except Exception:  # noqa: BLE001, S110 - whatever it raises says that the bytes are no such message
            pass
        text = "the message's bytes are not of the method's request type"
        # Not by a name of its own: the error would keep this frame, and the frame the error and the message.
        raise self._refused(InvalidInputError(text, reason="BAD_MESSAGE"))

    def _refused(self, error: TidegateError) -> TidegateError:
        self._on_refused(self.path, error)
        return error

    async def requests(self) -> AsyncIterator[Any]:
        """Iterate over the client's messages."""
        while (request := await self.read()) is not EOF:
            yield request

    async def write(self, message: Any) -> None:
        """Send a message; wait while the client does not read."""
        frame = self._frame(message)
        try:
            if not self._is_started:
                await self._send(self._start())
            await self._send({"type": "http.response.body", "body": frame, "more_body": True})
        except OSError:
            self._leave()

    async def reply(self, message: Any) -> None:
        """End a call that has one reply: send it, and the status; a status that is an error is sent alone."""
        if self._wire.is_web or self._status is not _OK:
            if self._status[0] is grpc.StatusCode.OK:
                await self.write(message)
            await self.finish()
            return
        frame = self._frame(message)
        self.is_finished = True
        try:
            if not self._is_started:
                await self._send(self._start())
            await self._send({"type": "http.response.body", "body": frame})
            await self._send(self._trailers() if self._trailing else _OK_TRAILERS)
        except OSError:
            self._leave()

    async def finish(self) -> None:
        """Send the status."""
        self.is_finished = True
        events: list[Event]
        if self._wire.is_web:
            trailers = pack_trailers(self._ending())
            trailers = base64.b64encode(trailers) if self._wire.is_text else trailers
            events = [{"type": "http.response.body", "body": trailers}]
            if not self._is_started:
                events.insert(0, self._start())
        elif self._is_started:
            events = [_END, self._trailers()]
        else:
            events = [self._wire.start([*self._initial, *self._ending()], is_whole=True), _END]
        try:
            for event in events:
                await self._send(event)
        except OSError:
            self._leave()

    def _frame(self, message: Any) -> bytes:
        raw: bytes = message if self._serialize is None else self._serialize(message)
        if len(raw) > self._limit:
            text = f"a reply of {len(raw)} bytes: at most {self._limit} are allowed"
            raise TooLargeError(text, reason="REPLY_TOO_LARGE")
        if self._encoding == "identity":
            frame = pack(raw)
        else:
            frame = pack(raw, "identity" if self._is_next_plain else self._encoding)
            self._is_next_plain = False
        return base64.b64encode(frame) if self._wire.is_text else frame

    def _start(self) -> Event:
        self._is_started = True
        return self._wire.start(self._initial) if self._initial else self._wire.plain_start

    def _trailers(self) -> Event:
        return {"type": "http.response.trailers", "headers": self._ending()}

    def _ending(self) -> Fields:
        code, details = self._status
        return [*encode_status(code.value[0], details), *self._trailing_fields]

    # How a call ends early.

    def interrupt(self, code: grpc.StatusCode, details: str) -> None:
        """End the call from outside its task, with this status."""
        if not self.is_finished:
            self.is_interrupted = True
            self._status = code, details
            self.task.cancel()

    def fail(self, status: grpc.Status) -> None:
        """Set the status that the call ends with."""
        self._status = status.code, status.details
        self.set_trailing_metadata(status.trailing_metadata or ())

    def close(self) -> None:
        """Nothing more is sent: stop the clock and tell whoever wants to know."""
        if self._timer is not None:
            self._timer.cancel()
        for callback in self._callbacks:
            callback(self)

    def _expire(self) -> None:
        self.interrupt(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's deadline has passed")

    def _leave(self) -> NoReturn:
        """The client is gone: nobody wants the rest of the call, in whatever task that is found out."""
        self.is_cancelled = True
        if asyncio.current_task() is not self.task:
            self.task.cancel()
        raise asyncio.CancelledError

    # What a servicer asks and sets.

    def time_remaining(self) -> float | None:  # type: ignore[override] # the stub forgets that there may be no deadline
        return None if self._deadline is None else max(self._deadline - self._clock(), 0.0)

    def invocation_metadata(self) -> tuple[Metadatum, ...]:  # type: ignore[override] # as grpc.aio has it: a tuple
        if self._metadata is None:
            self._metadata = decode_metadata(self.fields)
        return self._metadata

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        if self._is_started:
            raise aio.UsageError("the initial metadata was sent")
        self._initial = [*self._initial, *encode_metadata(initial_metadata)]
        try:
            await self._send(self._start())
        except OSError:
            self._leave()

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        metadata = tuple(trailing_metadata)
        self._trailing_fields = encode_metadata(metadata)  # what cannot be sent is refused here
        self._trailing = metadata

    def trailing_metadata(self) -> Metadata:  # type: ignore[override] # whatever was set
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self._status = code, self._status[1]

    def set_details(self, details: str) -> None:
        self._status = self._status[0], details

    def code(self) -> grpc.StatusCode:
        return self._status[0]

    def details(self) -> str:
        return self._status[1]

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        self.set_abort(code, details, trailing_metadata)
        raise aio.AbortError(f"{code.name}: {details}")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Metadata) -> None:
        """Set the status of a call that is about to be aborted; aborting with OK is a fault of the servicer."""
        self._status = (grpc.StatusCode.UNKNOWN if code is grpc.StatusCode.OK else code), details
        if trailing_metadata := tuple(trailing_metadata):
            self.set_trailing_metadata(trailing_metadata)

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress replies from now on, where the client accepts that; before the first of them."""
        encoding = _ENCODINGS[compression]
        accepted = self._fields.get(b"grpc-accept-encoding", b"").decode("latin-1").replace(" ", "").split(",")
        if encoding in accepted and not self._is_started:
            self._encoding = encoding
            self._initial = [*self._initial, (b"grpc-encoding", encoding.encode())]

    def disable_next_message_compression(self) -> None:
        self._is_next_plain = True

    def peer(self) -> str:
        """Return the client's address as gRPC writes it."""
        client = self._scope.get("client")
        if not client:
            return "unix:"
        host, port = client
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def auth_context(self) -> Mapping[str, list[bytes]]:
        """Return the client certificate's subject and chain, where it showed one."""
        tls = self._scope.get("extensions", {}).get("tls")
        if tls is None:
            return {}
        found = {"transport_security_type": [b"ssl"]}
        if tls["client_cert_name"]:
            found["x509_subject"] = [tls["client_cert_name"].encode()]
            found["x509_pem_cert"] = [tls["client_cert_chain"][0].encode()]
        return found

    def peer_identity_key(self) -> str | None:
        return "x509_subject" if "x509_subject" in self.auth_context() else None

    def peer_identities(self) -> list[bytes] | None:
        return self.auth_context().get("x509_subject")

    def cancelled(self) -> bool:
        return self.is_cancelled

    def done(self) -> bool:
        return self.is_finished or self.is_cancelled

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks = (*self._callbacks, callback)
