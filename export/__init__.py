"""From a trained state_dict to model files that have been proven equal to it."""
