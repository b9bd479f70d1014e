"""One GGUF file of a model, for llama.cpp and what is built on it.

``families.py`` holds what llama.cpp expects of each architecture, ``tensors.py`` turns an export's steps into
GGUF tensors, ``hyperparameters.py`` the configuration into keys, ``vocabulary.py`` the tokenizer;
``write.py`` puts them into a file, checks it and publishes it. The format itself is the ``gguf`` package's.
"""
