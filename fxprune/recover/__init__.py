"""Recovery: retraining a pruned model with LoRA, full training or distillation."""
