"""The reference server as SGLang's `/generate` is seen from outside (0.5.23; read in its source, not run)."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.servers.reference import Reference, refusal

KEPT = 6
"""Prompts have to be shorter than the model's length less these."""
Told = tuple[float | None, int, None]


class SglangReference(Reference):
    """A model behind HTTP that tells log-probabilities of prompts at `/generate` alone."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.app.router.routes.append(Route("/generate", self._generate, methods=["POST"]))

    async def _completions(self, request: Request) -> Response:
        """Of prompts it says nothing here."""
        return JSONResponse({"id": "1f", "choices": [{"index": 0, "text": "x", "logprobs": None}]})

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        fault = self.faults.pop(0) if self.faults else self.always
        longest = math.inf if self._max_length is None else self._max_length - KEPT
        if len(body["input_ids"]) >= longest:
            return refusal(400, f"Input length ({len(body['input_ids'])} tokens) exceeds the maximum allowed length")
        answer = {"text": "x", "output_ids": [3], "meta_info": self._meta(body)}
        found = None if fault is None else fault(request, answer)
        return Response(json.dumps(answer), media_type="application/json") if found is None else found

    @torch.no_grad()
    def _meta(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, start = body["input_ids"], body["logprob_start_len"]
        logp = self._model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        last = logp.shape[-1] - 1
        own: list[Told] = [(None, ids[start], None)]
        best: list[list[Told] | None] = [None]
        for place in range(start + 1, len(ids)):
            law = logp[place - 1]
            # The source says: x if x < vocab_size - 1 else 0.
            own.append((law[ids[place]].item(), ids[place] if ids[place] < last else 0, None))
            top = law.topk(body["top_logprobs_num"])
            best.append([_told(*one) for one in zip(top.values.tolist(), top.indices.tolist(), strict=True)])
        return {
            **{
                "id": f"gen-{len(self.requests)}",
                "prompt_tokens": len(ids),
                "completion_tokens": 1,
                "cached_tokens": 0,
            },
            **{"finish_reason": {"type": "length", "length": 1}, "weight_version": "default", "e2e_latency": 0.01},
            **{"input_token_logprobs": own, "output_token_logprobs": [(-1.0, 3, None)]},
            **{"input_top_logprobs": best, "output_top_logprobs": [[(-1.0, 3, None)]]},
        }


def _told(logp: float, index: int) -> Told:
    """orjson writes what is not finite as null."""
    return (logp if math.isfinite(logp) else None, index, None)
