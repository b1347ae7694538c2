"""Print the data set that the demo can use here: mnist, or aloud, mnist5k."""

import sys

from serve_cli.errors import InputError
from trainer.data import data_directory, load_dataset

try:
    load_dataset("mnist", None)
    print(f"MNIST found in {data_directory(None)}", file=sys.stderr)
    print("mnist")
except InputError as error:
    print(f"{error}\nTHE DEMO GOES ON WITH mnist5k, 5,000 real digits: expect some 90 %.", file=sys.stderr)
    print("mnist5k")
