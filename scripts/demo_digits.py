"""Write two test digits of each label as PNG files NUMBER_LABEL.png: demo_digits.py DATASET FOLDER."""

import sys
from pathlib import Path

import torch
from PIL import Image

from serve_cli.spec import CLASSES
from trainer.data import load_dataset

EACH = 2

dataset, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(parents=True)
test = load_dataset(dataset, None).test
order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
for label in range(CLASSES):
    for number in order[test.labels[order] == label][:EACH].tolist():
        Image.fromarray(test.images[number].numpy()).save(folder / f"{number:04d}_{label}.png")
