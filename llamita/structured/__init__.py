"""What a text must be: grammars, token healing and tool calls."""
