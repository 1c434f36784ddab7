"""For all tests: shapes in signatures are checked, torch has one thread, and every test starts from one seed."""

import pytest
from jaxtyping import install_import_hook

CHECKED = (
    "tutelage.divergences",
    "tutelage.losses",
    "tutelage.models.head",
    "tutelage.models.language_model",
    "tutelage.models.stepping",
    "tutelage.models.teachers",
    "tutelage.rollouts.sampling",
)
install_import_hook(list(CHECKED), "beartype.beartype")  # has to come before tutelage is imported

import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],  # machines that are shared are slow
)
settings.load_profile("steady")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
