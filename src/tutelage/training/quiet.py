"""Keeping the libraries below out of our display."""

import warnings
from logging import ERROR, getLogger


def quiet_transformers() -> None:
    """Switch off the advice of transformers and FSDP, and progress bars, for this process; errors still come through.

    FSDP warns of layers that return views, in case these were changed in place, which transformers' layers do not.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def quiet_quantisers() -> None:
    """Keep torchao and bitsandbytes, which transformers imports where they are installed, from talking at every start.

    They tell which of their compiled parts are not for this machine; PyTorch tells of an old habit of torchao's.
    """
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        getLogger(name).setLevel(ERROR)
