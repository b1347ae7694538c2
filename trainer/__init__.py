"""The training half: data, model, loop and run directory, on torch and Accelerate."""
