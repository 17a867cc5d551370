"""The whole decode step as one program of kernels: a plan applied to a finished model."""

from llamita.plans.cpu.forward import fuse, is_fused, unfuse
from llamita.plans.cpu.parts import unsupported_reason

__all__ = ["fuse", "is_fused", "unfuse", "unsupported_reason"]
