"""egobench: benchmark the fine-tuning of vision-language models on egocentric question answering."""

__version__ = "0.1.0"
