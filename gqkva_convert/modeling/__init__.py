"""Models whose attention heads read the stored heads that a layout names.

A grouped model is the stock transformers class with smaller projections and one attention function. Its
classes exist for every family of `families.py`; `registration.py` makes them known to transformers' Auto
classes, and `bundle.py` writes them as one file that a checkpoint carries along.
"""
