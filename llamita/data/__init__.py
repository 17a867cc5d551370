"""Training data: files to records, records to documents of tokens, documents to packed rows, rows to batches."""
