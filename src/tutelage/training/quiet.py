"""Keeping the libraries below out of our display."""

import warnings


def quiet_transformers() -> None:
    """Switch off transformers' progress bars and advice for this process; its errors still come through."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
