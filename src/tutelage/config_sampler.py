"""What a recipe may say of where the student's text is written, its section `sampler`; read like those of `config`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tutelage.config import STRICT, Count, Positive, Url


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sampling:
    """Where the student's text is written while it learns: in this process, or by vLLM (docs/served-rollouts.md)."""

    backend: Literal["local", "vllm-http"] = "local"
    """`local` writes in this process, as the method's `student_decoding` says; `vllm-http` has a vLLM server write,
    which gets the student's weights before every batch."""
    url: Url | Annotated[tuple[Url, ...], Field(min_length=1)] | None = None
    """vllm-http only: where the student is served, such as `http://localhost:8000/v1`, or a list of such servers. They
    are this run's alone."""
    model: str | None = None
    """vllm-http only: the name that it is served under."""
    weights_folder: str | None = None
    """vllm-http only: where weights are handed over; the servers see this folder under the same path. `weights` in
    the run's own folder by default."""
    tolerance: Positive = 0.1
    """vllm-http only: how far the server's log-probabilities of a fixed text may lie from the student's own, as a
    mean over its tokens, in nats. They differ by what the types of the weights round."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """vllm-http only: most optimiser steps by which the servers' weights may be behind the student's; they get new ones
    every so many steps and one. Above 0, positions are weighed (docs/served-rollouts.md)."""
    importance_cap: Annotated[float, Field(ge=1)] | None = 2.0
    """With max_staleness above 0: the largest importance weight; `null` leaves them as they are."""
    concurrency: Count = 64
    """vllm-http only: requests sent at a time."""
    timeout: Positive = 120.0
    """vllm-http only: seconds that a request, or one server's taking new weights, may take before it is sent again."""
    patience: Positive = 600.0
    """vllm-http only: seconds that a request is tried again for before the run saves and stops."""
    key_variable: str = "OPENAI_API_KEY"
    """vllm-http only: environment variable with the server's API key; nothing is sent where it is not set."""

    @model_validator(mode="after")
    def _served_or_not(self) -> "Sampling":
        given = {"url": self.url, "model": self.model, "weights_folder": self.weights_folder}
        given["max_staleness"] = self.max_staleness or None
        if self.backend == "local":
            named = [name for name, value in given.items() if value is not None]
            if named:
                raise ValueError(f"{named[0]} is for a server: set backend: vllm-http, or leave {named[0]} out")
        elif self.url is None or self.model is None:
            raise ValueError("backend vllm-http needs url, the server's, and model, the name that it is served under")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers, none where this process writes."""
        return (self.url,) if isinstance(self.url, str) else self.url or ()
