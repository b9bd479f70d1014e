"""Handing a result on: its model card, its licence, its upload to the Hugging Face Hub."""
