"""A small server of a tiny model, as vLLM's completions are seen from outside; scripted to fail in every way."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "tiny-teacher"
Fault = Callable[[Request, dict[str, Any]], Response | None]
"""What goes wrong with one request: another answer, or `None` after a change of the right one."""


class Reference:
    """A model behind HTTP.

    Args:
        folder: of the model and its tokenizer.
        max_logprobs: most tokens told at a position; more are refused.
        max_length: as `/v1/models` tells it.
        tokenizes: whether there is a `/tokenize`.
    """

    def __init__(
        self, folder: Path, *, max_logprobs: int = 100, max_length: int | None = 64, tokenizes: bool = True
    ) -> None:
        self.faults: list[Fault | None] = []
        """What happens to the next requests for completions, one after the other; `None` is nothing."""
        self.always: Fault | None = None
        """What happens to all others."""
        self.requests: list[dict[str, Any]] = []
        """Bodies of the requests for completions."""
        self.most_at_once = self._at_once = 0
        self.headers: list[dict[str, str]] = []
        self.port = 0
        self._max_logprobs, self._max_length = max_logprobs, max_length
        self.serve(folder)
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/completions", self._completions, methods=["POST"]),
        ]
        if tokenizes:
            routes.append(Route("/tokenize", self._tokenize, methods=["POST"]))
        self.app = Starlette(routes=routes)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def serve(self, folder: Path) -> None:
        """From now on, the model of this folder."""
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    async def _models(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        return JSONResponse({"object": "list", "data": [{"id": NAME, "max_model_len": self._max_length}]})

    async def _tokenize(self, request: Request) -> Response:
        text = (await request.json())["prompt"]
        return JSONResponse({"tokens": self._tokenizer.encode(text, add_special_tokens=False)})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(0.005)  # so that requests sent at once are here at once
        self._at_once -= 1
        fault = self.faults.pop(0) if self.faults else self.always
        if body["model"] != NAME:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        if body["prompt_logprobs"] > self._max_logprobs:
            return refusal(400, f"Requested prompt logprobs of {body['prompt_logprobs']}")
        answer = {"id": f"cmpl-{len(self.requests)}", "choices": [{"text": "x", "prompt_logprobs": self._scores(body)}]}
        found = None if fault is None else fault(request, answer)
        return Response(json.dumps(answer), media_type="application/json") if found is None else found

    @torch.no_grad()
    def _scores(self, body: dict[str, Any]) -> list[dict[str, Any] | None]:
        prompt = body["prompt"]
        ids = self._tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
        logp = self._model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        told: list[dict[str, Any] | None] = [None]
        for place, token in enumerate(ids[1:]):
            best = logp[place].topk(body["prompt_logprobs"])
            pairs = {token: logp[place, token].item(), **dict(zip(best.indices.tolist(), best.values.tolist()))}  # noqa: B905
            told.append({str(i): {"logprob": max(value, -9999.0), "rank": 1} for i, value in pairs.items()})
        return told


def refusal(status: int, message: str, **headers: str) -> Response:
    """As OpenAI's servers say no."""
    return JSONResponse({"error": {"message": message, "code": status}}, status, headers)


def status(code: int, **headers: str) -> Fault:
    """Answer with a status code."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request, answer: None if code == 200 else refusal(code, f"status {code} on purpose", **named)


def html(request: Request, answer: dict[str, Any]) -> Response:
    """A page of a proxy, with status 200."""
    return HTMLResponse("<html>Welcome</html>")


def trickle(request: Request, answer: dict[str, Any]) -> Response:
    """One byte every tenth of a second, for ever."""

    async def bytes_of_it():
        while True:
            yield b" "
            await asyncio.sleep(0.1)

    return StreamingResponse(bytes_of_it(), media_type="application/json")


def cut(request: Request, answer: dict[str, Any]) -> Response:
    """The connection ends in the middle of the answer."""
    text = json.dumps(answer).encode()

    async def half():
        yield text[: len(text) // 2]

    return StreamingResponse(half(), headers={"content-length": str(len(text))}, media_type="application/json")


def changed(change: Callable[[list[Any]], Any]) -> Fault:
    """Change the positions of the right answer."""

    def fault(request: Request, answer: dict[str, Any]) -> None:
        listed = answer["choices"][0]["prompt_logprobs"]
        replaced = change(listed)
        answer["choices"][0]["prompt_logprobs"] = listed if replaced is None else replaced

    return fault


@contextmanager
def running(server: Reference) -> Iterator[Reference]:
    """Serve in a thread, on a free port of this machine."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", server.port))
    server.port = listener.getsockname()[1]
    runner = uvicorn.Server(uvicorn.Config(server.app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        runner.should_exit = runner.force_exit = True
        thread.join(10)
        listener.close()
