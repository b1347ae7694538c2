"""`mnist serve`: a page to draw on, pictures over HTTP, and the Open Inference Protocol."""
