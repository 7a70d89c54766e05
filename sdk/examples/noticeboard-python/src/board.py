"""One exchange with a noticeboard at a time, and what its answers mean to the provider.

The provider tries again what is `unavailable`, and with patience what is `resource-exhausted`. What needs the operator is
`failed-precondition`, with what to do. What the provider's own import refuses, such as a server that was not granted, is passed on
as it is.
"""

import json
from typing import NoReturn, Optional

from componentize_py_types import Err
from settings import Settings
from wit_world.imports import http
from wit_world.imports.http import Method, Request, Response
from wit_world.imports.types import (
    Error_FailedPrecondition,
    Error_ResourceExhausted,
    Error_Unavailable,
)

# Two exchanges of this length fit into every call.
TIMEOUT_MS = 12_000

# Of what a board answers in words, this much is quoted.
QUOTED_CHARACTERS = 200


class Board:
    def __init__(self, url: str, token: Optional[str]):
        self._url = url.rstrip("/")
        self._token = token

    def address(self, provider_id: str) -> str:
        """Where people find an entry."""
        return f"{self._url}/{provider_id}"

    def get(self, provider_id: str) -> object:
        """The document under this id, whoever wrote it; none if there is none."""
        response = self._send(Method.GET, self.address(provider_id))
        return None if is_absent(response) else self._document(response)

    def get_all(self) -> list:
        """Every document there is."""
        documents = self._document(self._send(Method.GET, self._url))
        if not isinstance(documents, list):
            raise Err(Error_Unavailable(f"{self._url} answers no list, so it is no noticeboard"))
        return documents

    def put(self, provider_id: str, document: dict) -> None:
        response = self._send(Method.PUT, self.address(provider_id), json.dumps(document).encode())
        if is_absent(response):
            self._refuse(response)

    def delete(self, provider_id: str) -> None:
        self._send(Method.DELETE, self.address(provider_id))

    def _send(self, method: Method, url: str, body: bytes = b"") -> Response:
        """An answer that says how things are; 404 and 410 say that there is nothing."""
        headers = [("accept", "application/json")]
        if body:
            headers.append(("content-type", "application/json"))
        if self._token is not None:
            headers.append(("authorization", f"Bearer {self._token}"))
        response = http.send(
            Request(method=method, url=url, headers=headers, body=body, timeout_ms=TIMEOUT_MS)
        )
        if not (200 <= response.status < 300 or is_absent(response)):
            self._refuse(response)
        return response

    def _document(self, response: Response) -> object:
        # A page that says "not found" where the whole board should be.
        if is_absent(response):
            self._refuse(response)
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError) as error:
            raise Err(Error_Unavailable(f"{self._url} answers no JSON: {error}")) from error

    def _refuse(self, response: Response) -> NoReturn:
        words = response.body[: 4 * QUOTED_CHARACTERS].decode(errors="replace").strip()
        answer = f"{self._url} answers {response.status}"
        if words:
            answer += f": {words[:QUOTED_CHARACTERS]}"
        match response.status:
            case 401 | 403:
                raise Err(Error_FailedPrecondition(f"{answer}; check `token` in noticeboard-python.toml"))
            case 404 | 410:
                raise Err(Error_FailedPrecondition(f"{answer}; check `url` in noticeboard-python.toml"))
            case 429:
                raise Err(Error_ResourceExhausted(answer))
            case status if 400 <= status < 500:
                raise Err(Error_FailedPrecondition(f"{answer}; it does not take such an entry"))
            case _:
                raise Err(Error_Unavailable(answer))


def is_absent(response: Response) -> bool:
    return response.status in (404, 410)


def of(settings: Settings) -> Board:
    """The board that the operator has named."""
    if settings.url is None:
        missing = "no noticeboard is named; set `url` in noticeboard-python.toml"
        raise Err(Error_FailedPrecondition(missing))
    return Board(settings.url, settings.token)
