"""The embedded model `cria`: its corpus, tokenizer, training loop and score."""
