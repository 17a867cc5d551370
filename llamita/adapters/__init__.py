"""Adapters: small matrices that are trained in place of a model's weights (LoRA), in peft's files."""
