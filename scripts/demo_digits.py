"""Write the first test digits as PNG files named NUMBER_LABEL.png: demo_digits.py DATASET FOLDER."""

import sys
from pathlib import Path

from PIL import Image

from trainer.data import load_dataset

COUNT = 20

dataset, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
test = load_dataset(dataset, None).test
for number in range(COUNT):
    image = Image.fromarray(test.images[number].numpy())
    image.save(folder / f"{number:02d}_{int(test.labels[number])}.png")
