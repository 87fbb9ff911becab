"""What every folder may use, and which knows nothing of steering: files and paths, text, numbers,
tensors from outside, progress, ranks, warnings, the Hub."""
