"""Print what the demo measured: demo_summary.py FOLDER."""

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
report = json.loads((folder / "run" / "report.json").read_text())
parity = json.loads((folder / "artifact" / "parity.json").read_text())
files = json.loads((folder / "artifact" / "artifact.json").read_text())["files"]
answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
right = sum(Path(answer["file"]).stem.endswith(f"_{answer['label']}") for answer in answers)

dataset, test, train = report["dataset"]["name"], report["test"], report["train"]
print(f"Accuracy   {test['accuracy']:.2%} on {test['samples']:,} test images of {dataset}")
print(f"Training   {train['seconds']:.1f} s, {train['images_per_second']:,.0f} images/s on {train['device']}")
for name, file in files.items():
    if "format" not in file:
        continue
    proof = parity[file["format"]]
    print(
        f"{name:<22} {file['bytes']:,} bytes; against PyTorch on {proof['samples']:,} images: "
        f"logits within {proof['max_abs_logit_diff']:.1e}, {proof['argmax_flips']} labels differ"
    )
print(f"Read       {right} of {len(answers)} digits right, without torch")
