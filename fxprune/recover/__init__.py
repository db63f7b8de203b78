"""Recovery: retraining a pruned model with LoRA, full training or distillation."""

from fxprune.recover.methods import Distillation, FullTraining, LoRA, Method
from fxprune.recover.recover import Recovery, recover
from fxprune.recover.settings import Training

__all__ = ["Distillation", "FullTraining", "LoRA", "Method", "Recovery", "Training", "recover"]
