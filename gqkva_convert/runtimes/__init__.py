"""What runtimes other than transformers read: a GGUF file for llama.cpp."""
