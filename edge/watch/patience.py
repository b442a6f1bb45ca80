"""How long the page waits for who asks it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.base.listen import Connection, Listener

ANSWER_SECONDS = 60.0  # for an answer to be taken, or for one event
CHUNK = 64 * 1024


class Patience:
    """Tells the listener what each connection is at, so that it ends who takes too long."""

    def __init__(self, app: ASGIApp, listeners: Sequence[Listener]) -> None:
        self._app, self._listeners = app, listeners

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope)
        if found is None:
            await self._app(scope, receive, send)
            return
        listener, connection = found

        async def patient(message: Message) -> None:
            body = message.get("body", b"")
            while len(body) > CHUNK:  # in parts, each of which waits until the last is taken
                await send({"type": message["type"], "body": body[:CHUNK], "more_body": True})
                body = body[CHUNK:]
            if "body" in message:
                message = {**message, "body": body}
            await send(message)
            if message.get("more_body"):
                listener.begin(connection, ANSWER_SECONDS)

        listener.begin(connection, ANSWER_SECONDS)
        try:
            await self._app(scope, receive, patient)
        finally:
            listener.rest(connection)

    def _find(self, scope: Scope) -> tuple[Listener, Connection] | None:
        client = scope.get("client")
        if scope["type"] != "http" or client is None:
            return None
        for listener in self._listeners:
            connection = listener.find((client[0], client[1]))
            if connection is not None:
                return listener, connection
        return None
