"""What each of two processes does: `torchrun … trainer_worker.py FOLDER`; one step, and its gradients written down."""

import os
import sys
from pathlib import Path

import torch
from tests.integrations.test_trainer import BY_SEQUENCE, KD, gradients, models, rows


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for objective in (KD, BY_SEQUENCE):
        student, teacher = models()
        found[objective.reduction] = gradients(
            folder, student, data=rows()[:4], shape=(1, 2), objective=objective, teacher=teacher
        )
    if os.environ["RANK"] == "0":
        torch.save(found, folder / "two.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
