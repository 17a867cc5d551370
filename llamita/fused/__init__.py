"""The whole decode step as one program of kernels: a plan applied to a finished model."""

from llamita.fused.forward import fuse, unfuse, why_not

__all__ = ["fuse", "unfuse", "why_not"]
