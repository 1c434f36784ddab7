"""Requests to the servers of one model: many at a time, each bounded in time, tried again where that can help."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tutelage import config
from tutelage.config_sampler import Sampling
from tutelage.errors import InputError
from tutelage.redaction import redacted_text
from tutelage.world import limit, world

if TYPE_CHECKING:
    import httpx

CONNECT = 5.0
"""Seconds until a connection must stand."""
REST = 5.0
"""Seconds for which a server that failed is not asked, as long as another one answers."""
CHECKED = 60.0
"""Seconds after which a server has to prove again that it serves the same model: it may have been started anew."""
LONGEST_WAIT = 30.0
"""Most seconds between two attempts, unless the server asks for more."""
PASSING = (408, 409, 425, 429)
"""Status codes below 500 after which another attempt may succeed."""

Value = TypeVar("Value")
Json = Mapping[str, Any]


class Passing(Exception):
    """A request failed, and the same one may succeed later, or elsewhere.

    Args:
        problem: what happened.
        wait: seconds to wait before the next attempt; `None` leaves it to the rising waits.
        status: of HTTP, where there was an answer.
    """

    def __init__(self, problem: str, wait: float | None = None, status: int | None = None) -> None:
        super().__init__(problem)
        self.wait, self.status = wait, status

    @property
    def busy(self) -> bool:
        """Whether the server only has too much to do."""
        return self.status == 429


class Refused(InputError):
    """A server understood a request and will not answer it, today or tomorrow."""


@dataclass
class Server:
    """One of the servers, and how it fares."""

    url: str
    """Without a slash at its end."""
    client: "httpx.AsyncClient"
    timeout: float
    pending: int = 0
    """Requests that it has not answered yet."""
    resting_until: float = 0.0
    checked: float = -float("inf")
    """When it last proved to serve the model."""
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def failed(self) -> bool:
        """Whether it has failed since it last proved to serve the model; it may have been started anew."""
        return self.checked == -float("inf")

    async def ask(self, path: str, body: Json | None, shape: TypeAdapter[Value]) -> Value:
        """Ask once.

        Args:
            path: below the url, such as `/completions`; `..` leads to what is beside its `/v1`.
            body: the request; `None` gets what lies at the path.
            shape: what the answer has to look like.

        Raises:
            Passing: it cannot be reached, is overloaded, broken, or takes too long.
            Refused: it will not answer this request.
            InputError: the answer looks otherwise.
        """
        beside = path.startswith("/..")
        address = self.url.removesuffix("/v1") + path[3:] if beside else self.url + path
        response = await self._send(address, body)
        status = response.status_code
        if status in PASSING or status >= 500:
            wait = _seconds(response.headers.get("Retry-After"))
            raise Passing(f"HTTP {status}: {_message(response)}", wait, status)
        if status >= 300:
            raise Refused(f"the server at {address} refuses a request (HTTP {status}: {_message(response)})")
        try:
            return shape.validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole of it"
            raise InputError(
                f"the server at {address} answers otherwise than expected ({place}: {first['msg']}; it begins: "
                f"{_cut(response.text, 80)}); look at its url in the recipe, and at the server's own log"
            ) from None

    async def _send(self, address: str, body: Json | None) -> "httpx.Response":
        import httpx

        self.pending += 1
        try:
            async with asyncio.timeout(self.timeout):
                return await self.client.request("GET" if body is None else "POST", address, json=body)
        except TimeoutError:
            raise Passing(f"no whole answer within {self.timeout:g} s") from None
        except httpx.RequestError as error:
            raise Passing(redacted_text(str(error) or type(error).__name__)) from None
        finally:
            self.pending -= 1


class Servers:
    """Servers of the same model, and a thread that talks to them.

    A request goes to the server with the fewest others pending. One that fails rests for a while and has to pass a
    check before it is asked again; the request itself is tried again, elsewhere where there is another one.

    Args:
        spec: `url`, `concurrency`, `timeout`, `patience` and `key_variable` of a recipe's section.
        report: told now and then what is waited for.

    Raises:
        InputError: the extra 'served' is not installed, or the other processes of the run do not wait that long.
    """

    def __init__(self, spec: config.Teacher | Sampling, report: Callable[[str], None]) -> None:
        try:
            import httpx
            import stamina  # noqa: F401
        except ImportError:
            raise InputError("asking a server (url) needs: pip install 'tutelage[served]'") from None
        if world().size > 1 and spec.patience >= limit().total_seconds():
            raise InputError(
                f"patience with a server (url) is {spec.patience:g} s, and the processes of a run wait "
                f"{limit().total_seconds():g} s for one another; lower it, or raise TUTELAGE_TIMEOUT_MINUTES"
            )
        secret = os.environ.get(spec.key_variable)
        logging.getLogger("stamina").addHandler(logging.NullHandler())  # what it says by default says nothing here
        self.report, self._patience, self._said = report, spec.patience, -float("inf")
        client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
            timeout=httpx.Timeout(spec.timeout, connect=min(CONNECT, spec.timeout), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=spec.concurrency),
        )
        self.all = [Server(url.rstrip("/"), client, spec.timeout) for url in spec.urls]
        """The servers."""
        self._check: Callable[[Server], Awaitable[None]] | None = None
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="servers").start()

    def start(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        """Do something in the thread that talks to the servers, and go on meanwhile."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Do something in the thread that talks to the servers, and wait for it; leaving earlier ends it there."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def trust(self, check: Callable[[Server], Awaitable[None]]) -> None:
        """Take all servers for good now.

        Args:
            check: asked about a server that failed, or that was not asked for a while; raises `InputError` where it
                does not serve the model that it served.
        """
        self._check = check
        for server in self.all:
            server.checked = time.monotonic()

    async def each(self, action: Callable[[Server], Awaitable[Value]], patience: float) -> list[Value]:
        """Do something with every server; what fails in passing is tried again.

        Raises:
            ConnectionError: that did not help within `patience` seconds.
        """
        return await all_of([self._patiently(partial(action, server), server.url, patience) for server in self.all])

    async def ask(self, path: str, bodies: Sequence[Json], shape: TypeAdapter[Value]) -> list[Value]:
        """Send requests, at most `concurrency` at a time, and return the answers in their order.

        Raises:
            ConnectionError: one was not answered within `patience` seconds.
            InputError: a server refuses one, or answers otherwise than in this shape, or does not pass the check.
        """
        return await all_of([self.ask_one(path, body, shape) for body in bodies])

    async def ask_one(self, path: str, body: Json, shape: TypeAdapter[Value]) -> Value:
        """Send one of them."""
        urls = " and ".join(server.url for server in self.all)
        async with self._slots:
            return await self._patiently(partial(self._once, path, body, shape), urls, self._patience)

    async def _once(self, path: str, body: Json, shape: TypeAdapter[Value]) -> Value:
        """Ask the server that is likeliest to answer soon."""
        now = time.monotonic()
        server = min(self.all, key=lambda s: (max(s.resting_until - now, 0.0), s.pending))
        try:
            await self._checked(server)
            return await server.ask(path, body, shape)
        except Passing as error:
            now = time.monotonic()
            server.resting_until = now + max(REST, error.wait or 0.0)
            if not error.busy:  # it may have been started anew, with another model
                server.checked = -float("inf")
            if any(other.resting_until <= now for other in self.all):
                raise Passing(str(error), wait=0.0) from None
            raise

    async def _checked(self, server: Server) -> None:
        if self._check is None:
            return
        async with server.checking:  # of many requests, the first one has the server checked
            if time.monotonic() - server.checked > CHECKED:
                await self._check(server)
                server.checked = time.monotonic()

    async def _patiently(self, action: Callable[[], Awaitable[Value]], urls: str, patience: float) -> Value:
        import stamina

        last = "no answer"

        def again(error: Exception) -> bool | float:
            nonlocal last
            if not isinstance(error, Passing):
                return False
            last = str(error)
            self._tell(urls, last)
            return True if error.wait is None else error.wait

        try:
            async with asyncio.timeout(patience):
                attempts = stamina.retry_context(on=again, attempts=None, timeout=None, wait_max=LONGEST_WAIT)
                async for attempt in attempts:
                    with attempt:
                        return await action()
        except TimeoutError:
            pass
        raise ConnectionError(f"the server at {urls} gave no answer within {patience:g} s (last: {last})")

    def _tell(self, urls: str, problem: str) -> None:
        if time.monotonic() - self._said > LONGEST_WAIT:
            self._said = time.monotonic()
            self.report(f"note: waiting for the server at {urls} ({problem})")


async def all_of(work: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """Wait for all, and return what they return; where one fails, the others are ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _message(response: "httpx.Response") -> str:
    """What a server says of an error, where it does so as OpenAI's do, or else the beginning of its answer."""
    try:
        said = response.json()
    except ValueError:
        return _cut(response.text)
    error = said.get("error", said) if isinstance(said, dict) else said
    return _cut(str(error.get("message", error) if isinstance(error, dict) else error))


def _seconds(header: str | None) -> float | None:
    """The seconds of a `Retry-After`; dates, which are rare, count as none.

    >>> _seconds("3"), _seconds("Wed, 21 Oct 2026 07:28:00 GMT"), _seconds(None)
    (3.0, None, None)
    """
    return float(header) if header and header.strip().isdigit() else None


def _cut(text: str, longest: int = 300) -> str:
    text = " ".join(redacted_text(text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
