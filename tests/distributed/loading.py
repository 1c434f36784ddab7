"""What each process of a loading test does: `torchrun … loading.py JOBS.json`, each job a model to be loaded cut.

Processes other than the first find a folder without weights, unless the job says that all may read. What becomes of the
model is put beside the jobs, a file for each process.
"""

import json
import sys
from itertools import accumulate
from pathlib import Path

import torch
from tests.tiny_models import ragged
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from tutelage.config import Model
from tutelage.models.language_model import LanguageModel
from tutelage.models.scattering import load_cut
from tutelage.world import joined, leave


def most_bytes(recorded: profile) -> int:
    """The most that PyTorch's allocator had given out at once."""
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(change for _, change in changes))


def main() -> None:
    torch.set_num_threads(1)
    jobs = Path(sys.argv[1])
    with joined() as everyone:
        for number, job in enumerate(json.loads(jobs.read_text())):
            folder = Path(job["model"]) if everyone.is_main or job.get("all_read") else Path(job["bare"])
            spec = Model(model=str(folder), dtype=job["dtype"], device="cpu")
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
                model = load_cut(spec, job["role"], seed=0)
            shared = {}
            for name, parameter in model.named_parameters(remove_duplicate=False):
                shared.setdefault(id(parameter), []).append(name)
            found = {
                "most": most_bytes(recorded),
                "cut": all(isinstance(parameter, DTensor) for parameter in model.parameters()),
                "tied": [names for names in shared.values() if len(names) > 1],
                "learns": [parameter.requires_grad for parameter in model.parameters()],
                "stop": model.generation_config.eos_token_id,
                "weights": {
                    name: p.detach().full_tensor() for name, p in model.named_parameters(remove_duplicate=False)
                },
                "buffers": dict(model.named_buffers()),
            }
            language = LanguageModel(model)
            with torch.no_grad():
                found["logits"] = language.head.gathered().logits(language.hidden(ragged()))
            torch.save(found, jobs.with_name(f"found-{number}-{everyone.rank}"))


if __name__ == "__main__":
    main()
    leave(0)
