"""Task families: what is asked of the model, its loss and its metrics."""
