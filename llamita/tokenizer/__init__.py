"""Text to token ids and back, streamed text, chat templates; loads no torch."""
