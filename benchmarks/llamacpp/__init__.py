"""Whether llama.cpp steers as this package does, by the files that it writes."""
