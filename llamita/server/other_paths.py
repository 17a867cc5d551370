"""Paths of other servers, which their clients ask for, and what does the same here."""

from collections.abc import Collection, Mapping

# Our path -> those of Ollama, llama.cpp, TGI, SGLang and the clouds, and what a base address with or without /v1 makes.
OTHERS: Mapping[str, Collection[str]] = {
    "/v1/chat/completions": ("/api/chat", "/chat/completions", "/v1/v1/chat/completions", "/chat"),
    "/v1/completions": (
        *("/api/generate", "/completion", "/completions", "/generate", "/generate_stream", "/infill"),
        *("/v1/v1/completions", "/invocations"),
    ),
    "/v1/messages": ("/messages", "/v1/complete", "/v1/v1/messages"),
    "/v1/responses": ("/responses", "/v1/v1/responses"),
    "/v1/embeddings": ("/api/embed", "/api/embeddings", "/embedding", "/embeddings", "/embed", "/v1/v1/embeddings"),
    "/v1/models": ("/api/tags", "/api/show", "/api/ps", "/models", "/props", "/info", "/v1/v1/models"),
    "/tokenize": ("/v1/tokenize",),
    "/detokenize": ("/v1/detokenize",),
    "/health": ("/v1/health", "/healthz", "/livez", "/ping", "/api/version", "/version"),
    "/ready": ("/readyz", "/v1/ready"),
    "/metrics": ("/slots", "/load", "/v1/metrics"),
}
OURS: Mapping[str, str] = {other: own for own, others in OTHERS.items() for other in others}
