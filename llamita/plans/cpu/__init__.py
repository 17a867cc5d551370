"""The plan `kernels`: passes of a finished model as programs of CPU kernels."""

from llamita.plans.cpu.forward import fuse, is_fused, unfuse
from llamita.plans.cpu.parts import unsupported_reason

__all__ = ["fuse", "is_fused", "unfuse", "unsupported_reason"]
