"""Train egotiny's tokenizer: byte-level BPE over egoworld text, so that any UTF-8 text encodes.

`python -m egobench.models.vocabulary --out DIR`. The ids of the shipped one are baked into the shipped weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from egobench.data.egoworld.generate import Recipe, generate
from egobench.models.prompt import END, OPENING, PAD, SPECIAL_TOKENS, TURN
from egobench.spec.dims import TINY_VOCAB


def train_tokenizer(num_samples: int = 20_000, seed: int = 0) -> Any:
    """Train on the questions and answers of both domains."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(num_samples, seed), trainer)
    fast: Any = PreTrainedTokenizerFast  # its constructor is untyped
    return fast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False)


def _texts(num_samples: int, seed: int) -> Iterator[str]:
    for domain in ("home", "workshop"):
        recipe = Recipe(domain, "train", num_samples, seed, image_px=8)
        for sample in generate(recipe).samples:
            yield OPENING + sample.question + TURN
            yield sample.answers[0]


def main() -> None:
    """Write the tokenizer files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    train_tokenizer().save_pretrained(parser.parse_args().out)


if __name__ == "__main__":
    main()
