"""Random numbers that depend on a key alone, so that resuming needs no random state."""

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU whose numbers depend on all parts of `key`, each at least 0."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))
