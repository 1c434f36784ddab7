"""The reference server as a student's: it writes text, takes weights from folders, and forgets as vLLM does."""

import json
import threading
from pathlib import Path
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.servers.reference import NAME, Reference, refusal
from transformers import AutoModelForCausalLM

_LOADING = threading.Lock()
"""Loading sets torch's default type for a while, for all threads."""


class StudentReference(Reference):
    """A model behind HTTP that can be given other weights.

    Text is written with the weights that the prompts were first read with, until `/reset_prefix_cache`: a server that
    keeps keys and values of prompts goes on with old ones.

    Args:
        folder: of the model that it starts with.
        updates: whether there are the endpoints for weights (VLLM_SERVER_DEV_MODE).
        processed: whether log-probabilities are those that it draws from (--logprobs-mode processed_logprobs).
        keeps: parameters that a reload leaves as they were, by a part of their names.
        options: as `Reference` takes them.
    """

    def __init__(
        self, folder: Path, *, updates: bool = True, processed: bool = True, keeps: str | None = None, **options: Any
    ) -> None:
        super().__init__(folder, **options)
        self.label, self.reloads, self.resets = "default", [], []
        """The label of the weights; the folders read; what the next resets say."""
        self.answers: list[dict[str, Any]] = []
        self._start, self._processed, self._keeps = folder, processed, keeps
        self._writer = self._model
        if updates:
            self.app.router.routes += [
                Route("/weight_info", self._info),
                Route("/collective_rpc", self._rpc, methods=["POST"]),
                Route("/reset_prefix_cache", self._reset, methods=["POST"]),
                Route("/update_weight_version", self._set_label, methods=["POST"]),
            ]

    def restart(self) -> None:
        """Be as at the start."""
        self.serve(self._start)
        self.label, self._writer = "default", self._model

    async def _info(self, request: Request) -> Response:
        return JSONResponse({"weight_version": self.label})

    async def _rpc(self, request: Request) -> Response:
        body = await request.json()
        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        self.reloads.append(folder)
        if not (folder / "model.safetensors").exists():
            return refusal(500, f"Worker failed with error 'Repo id must be in the form: {folder}'")
        before = self._model.state_dict()
        with _LOADING:
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        if self._keeps is not None:
            kept = {name: tensor for name, tensor in before.items() if self._keeps in name}
            self._model.load_state_dict(kept, strict=False)
        return JSONResponse({"results": [None]})

    async def _reset(self, request: Request) -> Response:
        success = self.resets.pop(0) if self.resets else True
        if success:
            self._writer = self._model
        return JSONResponse({"success": success})

    async def _set_label(self, request: Request) -> Response:
        self.label = (await request.json())["new_version"]
        return JSONResponse({"success": True, "new_version": self.label})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        if "prompt_logprobs" in body or body["model"] != NAME:
            return await super()._completions(request)
        self.requests.append(body)
        fault = self.faults.pop(0) if self.faults else self.always
        answer = {"id": f"cmpl-{len(self.requests)}", "choices": [self._written(body)]}
        found = None if fault is None else fault(request, answer)
        self.answers.append(answer)
        return Response(json.dumps(answer), media_type="application/json") if found is None else found

    @torch.no_grad()
    def _written(self, body: dict[str, Any]) -> dict[str, Any]:
        """Token by token, in float64, each law written out over the vocabulary."""
        draws = torch.Generator().manual_seed(body["seed"] % 2**63)
        ids, told = list(body["prompt"]), []
        first = len(ids)
        while len(ids) - first < body["max_tokens"] and (len(ids) == first or ids[-1] not in body["stop_token_ids"]):
            raw = self._writer(input_ids=torch.tensor([ids])).logits[0, -1]
            logits = raw.clone()
            for index, bias in (body["logit_bias"] or {}).items():
                logits[int(index)] += bias
            law = self._law(logits, body)
            token = int(law.argmax() if body["temperature"] == 0 else law.multinomial(1, generator=draws))
            ids.append(token)
            told.append((law.log() if self._processed else raw.log_softmax(-1))[token].item())
        return {"text": "x", "token_ids": ids[first:], "logprobs": {"token_logprobs": told}}

    @staticmethod
    def _law(logits: torch.Tensor, body: dict[str, Any]) -> torch.Tensor:
        law = (logits / (body["temperature"] or 1.0)).softmax(-1)
        order = law.argsort(descending=True)
        kept = body["top_k"] or len(law)
        mass = 0.0
        for place, index in enumerate(order.tolist()):
            whole = law[order[:kept]].sum()
            if place >= kept or mass >= body["top_p"]:
                law[index] = 0.0
            else:
                mass += (law[index] / whole).item() if body["top_p"] < 1 else 0.0
        return law / law.sum()
