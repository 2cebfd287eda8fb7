"""Training with Lightning's loop; the losses need none of it."""
