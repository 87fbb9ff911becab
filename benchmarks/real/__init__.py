"""The study on real models: three checkpoints, fetched from the package index and made ready."""
