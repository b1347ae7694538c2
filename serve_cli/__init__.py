"""The half that answers: numpy, onnxruntime and Pillow, never torch."""

import os

# onnxruntime reads this when it is imported: its wheels send telemetry unless told not to, and
# our users' pictures are nobody's business. Who sets the variable keeps what they set.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
