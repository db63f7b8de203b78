"""A smaller vocabulary: which tokens stay, and the tokenizer and the model without the others."""
