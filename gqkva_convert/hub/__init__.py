"""Describing a folder (model card, page) and sending it to the Hugging Face Hub."""
