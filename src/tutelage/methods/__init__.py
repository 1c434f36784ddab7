"""The methods: one frozen dataclass each, which is both its configuration and its runtime."""

from typing import Annotated

from pydantic import Field

from tutelage.methods.gkd import GKD, ImitKD, OnPolicyKD
from tutelage.methods.objective import Objective, Terms
from tutelage.methods.supervised import SFT, SeqKD, SupervisedKD

Method = Annotated[SFT | SeqKD | SupervisedKD | OnPolicyKD | ImitKD | GKD, Field(discriminator="name")]
"""Any method, told apart by its `name`."""

METHODS = {method.name: method for method in (SFT, SeqKD, SupervisedKD, OnPolicyKD, ImitKD, GKD)}

__all__ = [
    "GKD",
    "METHODS",
    "SFT",
    "ImitKD",
    "Method",
    "Objective",
    "OnPolicyKD",
    "SeqKD",
    "SupervisedKD",
    "Terms",
]
