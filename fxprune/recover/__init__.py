"""Recovery: retraining a pruned model with LoRA, full training or distillation."""

from fxprune.recover.methods import Distillation, FullTraining, LoRA, Method
from fxprune.recover.prune_and_recover import PrunedAndRecovered, prune_and_recover
from fxprune.recover.recover import Recovery, recover
from fxprune.recover.settings import Training

__all__ = [
    "Distillation",
    "FullTraining",
    "LoRA",
    "Method",
    "PrunedAndRecovered",
    "Recovery",
    "Training",
    "prune_and_recover",
    "recover",
]
