"""The methods: one frozen dataclass each, which is both its configuration and its runtime."""

from typing import Annotated

from pydantic import Field

from tutelage.methods.cross_tokenizer import CrossTokenizer
from tutelage.methods.distillm import DistiLLM
from tutelage.methods.distillm_2 import DistiLLM2
from tutelage.methods.f_distill import FDistill
from tutelage.methods.gkd import GKD, ImitKD, OnPolicyKD
from tutelage.methods.minillm import MiniLLM, MiniLLMSingleStep
from tutelage.methods.moment_matching import DistributionMatching, MomentMatching
from tutelage.methods.objective import Objective, Terms
from tutelage.methods.pre_distil import PreDistil
from tutelage.methods.ranking import MiniLLMRanking
from tutelage.methods.reinforced import RewardedGKD
from tutelage.methods.supervised import SFT, SeqKD, SupervisedKD

Method = Annotated[
    SFT
    | SeqKD
    | SupervisedKD
    | OnPolicyKD
    | ImitKD
    | GKD
    | FDistill
    | PreDistil
    | CrossTokenizer
    | DistiLLM
    | DistiLLM2
    | MiniLLM
    | MiniLLMSingleStep
    | MiniLLMRanking
    | DistributionMatching
    | MomentMatching
    | RewardedGKD,
    Field(discriminator="name"),
]
"""Any method, told apart by its `name`."""

METHODS = {
    method.name: method
    for method in (
        SFT,
        SeqKD,
        SupervisedKD,
        OnPolicyKD,
        ImitKD,
        GKD,
        FDistill,
        PreDistil,
        CrossTokenizer,
        DistiLLM,
        DistiLLM2,
        MiniLLM,
        MiniLLMSingleStep,
        MiniLLMRanking,
        DistributionMatching,
        MomentMatching,
        RewardedGKD,
    )
}

__all__ = [
    "GKD",
    "METHODS",
    "SFT",
    "CrossTokenizer",
    "DistiLLM",
    "DistiLLM2",
    "DistributionMatching",
    "FDistill",
    "ImitKD",
    "Method",
    "MiniLLM",
    "MiniLLMRanking",
    "MiniLLMSingleStep",
    "MomentMatching",
    "Objective",
    "OnPolicyKD",
    "PreDistil",
    "RewardedGKD",
    "SeqKD",
    "SupervisedKD",
    "Terms",
]
