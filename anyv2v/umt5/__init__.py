"""The text encoder UMT5 (arXiv 2304.09151), with its tokenizer and files of embeddings."""
