"""The facts of a Llama: shapes, rotary positions, token ids; config.json of any age."""

from llamita.config.llama import LlamaConfig as LlamaConfig
from llamita.config.rope import ROPE_REQUIRED as ROPE_REQUIRED
from llamita.config.rope import RopeConfig as RopeConfig
from llamita.config.validation import ACTIVATIONS as ACTIVATIONS
from llamita.config.validation import DTYPES as DTYPES
