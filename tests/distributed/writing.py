"""What each process of a writing test does: `torchrun … writing.py JOBS.json`, each job a model to be cut and written.

A job names the model, where it goes, and how large a file may be. What each process wrote itself, and the most that it
held, is put beside the jobs.
"""

import json
import sys
from pathlib import Path

import torch
from tests.distributed.loading import most_bytes
from torch.profiler import ProfilerActivity, profile

from tutelage.config import Model
from tutelage.models import gathering
from tutelage.models.gathering import write_model, write_tensors
from tutelage.models.loading import load_model
from tutelage.models.sharding import shard
from tutelage.world import joined, leave


def main() -> None:
    torch.set_num_threads(1)
    jobs = Path(sys.argv[1])
    save_file = gathering.save_file
    with joined() as everyone:
        for number, job in enumerate(json.loads(jobs.read_text())):
            mine: list[str] = []

            def listed(tensors, path, metadata, mine=mine):
                mine.append(path.name)
                return save_file(tensors, path, metadata=metadata)

            gathering.save_file, gathering.FILE_BYTES = listed, job["file_bytes"]
            model = shard(load_model(Model(model=job["model"], device="cpu"), "student", seed=0), "student")
            moments = {f"moments.{name}": parameter.detach() * 2 for name, parameter in model.named_parameters()}
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
                files = write_model(model, Path(job["to"]))
                files += write_tensors(Path(job["to"]), "optimizer", {**moments, "step": torch.tensor(3.0)})
            said = {file.name: [file.seal.sha256, dict(file.sizes)] for file in files}
            found = {"mine": mine, "files": said, "most": most_bytes(recorded)}
            jobs.with_name(f"wrote-{number}-{everyone.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    leave(0)
