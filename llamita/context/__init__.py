"""What one forward pass needs besides weights: where its tokens stand, and how they attend."""

from llamita.context.arguments import from_arguments as from_arguments
from llamita.context.cached import Cached as Cached
from llamita.context.causal import Causal as Causal
from llamita.context.packed import Packed as Packed
from llamita.context.protocol import Context as Context
from llamita.context.protocol import Rotation as Rotation
from llamita.context.recording import Recording as Recording

__all__ = ["Cached", "Causal", "Context", "Packed", "Recording", "Rotation", "from_arguments"]
