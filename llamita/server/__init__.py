"""The HTTP server: OpenAI's API over the engine. It translates requests and answers, and does nothing to either."""
