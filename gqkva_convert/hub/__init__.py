"""Sending a converted folder to the Hugging Face Hub."""
