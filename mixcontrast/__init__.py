"""Hard examples for contrastive and metric learning, mixed without building an embedding."""
